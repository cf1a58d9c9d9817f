//! A Slurm of several nodes on this machine: one slurmd each.

use std::fs;

use anyhow::{Result, ensure};

use crate::cluster::{CLIENT_PLUGSTACK, Cluster, NODE_PLUGSTACK, free_ports, host};

/// More than these addresses would be of use to nobody on one machine.
const MOST: usize = 64;

impl Cluster {
    /// Starts a cluster of so many nodes, without the plugin, and waits until all are idle.
    ///
    /// A node's name is its address, `127.0.0.1`, `127.0.0.2`, ...: all of 127.0.0.0/8 is this machine, so the names
    /// resolve everywhere without any configuration, to addresses that differ. What a node keeps in files is below a folder of
    /// its own. Its tasks may run on every CPU of this machine, since the nodes share them.
    ///
    /// # Errors
    /// If a daemon doesn't start.
    pub fn start_many(nodes: usize) -> Result<Self> {
        ensure!((1..=MOST).contains(&nodes), "{nodes} nodes: 1 to {MOST} can be started");
        let mut cluster = Self::new()?;
        let names: Vec<String> = (1..=nodes).map(|number| format!("127.0.0.{number}")).collect();
        cluster.write_many(&names)?;
        cluster.start_controller()?;
        for name in &names {
            let arguments = ["-D", "-N", name].map(str::to_owned);
            cluster.daemon(&format!("{name} slurmd"), &arguments)?;
        }
        for name in &names {
            cluster.wait(&format!("slurmd of {name}"), |cluster| Ok(cluster.state_of(name)? == "idle"))?;
        }
        cluster.read_versions()?;
        Ok(cluster)
    }

    fn write_many(&self, names: &[String]) -> Result<()> {
        let [controller, ports @ ..]: [u16; MOST + 1] = free_ports()?;
        let (folder, host) = (self.path(""), host()?);
        let mut nodes = String::new();
        for (name, port) in names.iter().zip(ports) {
            for folder in [format!("spool-{name}"), format!("tmp-{name}")] {
                fs::create_dir(self.path(&folder))?;
            }
            nodes += &format!(
                "NodeName={name} NodeHostname={host} NodeAddr={name} Port={port} \
                 CPUs=2 Sockets=2 CoresPerSocket=1\n"
            );
        }
        for (file, plugstack) in [("slurm.conf", NODE_PLUGSTACK), ("client.conf", CLIENT_PLUGSTACK)] {
            // Slurm puts the node's name in the place of %n. The folder TmpFS has the sockets of Slurm's PMIx plugin, under
            // the same names on every node.
            let common = self.configuration(controller, plugstack, "%n-")?;
            let text = format!(
                "{common}\
                 TaskPlugin=task/none\n\
                 TmpFS={}tmp-%n\n\
                 {nodes}\
                 PartitionName=all Nodes=ALL Default=YES State=UP\n",
                folder.display()
            );
            fs::write(self.path(file), text)?;
        }
        Ok(())
    }
}
