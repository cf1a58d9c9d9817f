//! What a node is made of: RDMA ports, GIDs, netdevs, NUMA nodes, read from sysfs as plain data.
