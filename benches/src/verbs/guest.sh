# What roce-bench runs in the guest: root's bash, with one RDMA device, rxe0, on 10.0.0.1, and two CPUs. Two that talk have a CPU each.
ulimit -l unlimited
# A peer that waits for one that is gone is ended.
limit="timeout -k 5 150"
# Before what a player is started with.
idle="chrt -i 0"

# Soft-RoCE's work goes by kernel threads that are on either CPU, as it comes. Where they happen to be makes a player twice as slow as the
# same one a moment later: so they are on CPU 0 for all.
echo 1 > /sys/devices/virtual/workqueue/cpumask

# The device's row of the RoCE v2 GID of 10.0.0.1.
gid_row() {
    local folder=/sys/class/infiniband/rxe0/ports/1 row
    for row in 0 1 2 3 4 5 6 7; do
        if [ "$(cat $folder/gids/$row)" = 0000:0000:0000:0000:0000:ffff:0a00:0001 ] &&
            [ "$(cat $folder/gid_attrs/types/$row)" = "RoCE v2" ]; then
            echo $row
            return
        fi
    done
    echo "rxe0 has no RoCE v2 GID of 10.0.0.1" >&2
    exit 1
}

# Packets that the device has sent so far.
packets() {
    cat /sys/class/infiniband/rxe0/ports/1/hw_counters/sent_pkts
}

# until_listening PORT: a TCP port that a server opens.
until_listening() {
    local port try
    port=$(printf ':%04X 0*:0000 0A' "$1")
    for try in $(seq 200); do
        grep -q "$port" /proc/net/tcp /proc/net/tcp6 && return
        sleep 0.05
    done
    echo "nobody listens on port $1" >&2
    exit 1
}

# pair SERVER... -- CLIENT...: each with a CPU of its own, which soft-RoCE's threads take when they have something to do: on hardware that
# is the NIC's, so who polls must not make it wait. The client starts when the server listens on $port. Prints
# what the client prints, or what both said if one fails.
pair() {
    local server=() client packets_before=$(packets)
    while [ "$1" != -- ]; do
        server+=("$1")
        shift
    done
    shift
    $limit $idle taskset -c 1 "${server[@]}" > /tmp/server 2>&1 &
    [ -z "$port" ] || until_listening "$port"
    if ! $limit $idle taskset -c 0 "$@" > /tmp/client 2>&1 || ! wait $!; then
        echo "$*" >&2
        tail -n 20 /tmp/client /tmp/server >&2
        exit 1
    fi
    cat /tmp/client
    echo "packets $(($(packets) - packets_before))"
}

# ours CASE BYTES TIMES...: two ranks that take each other for one of another node, and may talk over verbs alone. $wrap goes before rank
# 0's command.
ours() {
    local program=/lab/bin/roce-bench-verbs-rank
    export SLURM_JOB_ID=$$ SLURM_STEP_ID=0 SLURM_NTASKS=2 SLURM_STEP_NODELIST=10.0.0.1,127.0.0.1 SLURM_LOCALID=0
    export SLURM_STEP_TASKS_PER_NODE="1(x2)" SLURM_ROCE_SECRET=5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f
    export ROCE_TRANSPORTS=verbs ROCE_DEVICES=rxe0:1 ROCE_GIDS=::ffff:10.0.0.1
    port= pair env SLURM_PROCID=1 SLURM_NODEID=1 $program 1 "$@" -- env SLURM_PROCID=0 SLURM_NODEID=0 $wrap $program 0 "$@"
    cat /tmp/server
}

# perftest PROGRAM BYTES TIMES: over the GID's row, without inline data, as ours.
perftest() {
    local command=("$1" -d rxe0 -x "$(gid_row)" -I 0 -F -s "$2" -n "$3")
    port=18515 pair "${command[@]}" -- "${command[@]}" 127.0.0.1
}

# pingpong BYTES TIMES: libfabric's, over its verbs provider's connected endpoints. Its reliable datagrams connect while it measures.
pingpong() {
    local command=(fi_pingpong -p verbs -e msg -d rxe0 -S "$1" -I "$2")
    port=47592 pair "${command[@]}" -- "${command[@]}" 10.0.0.1
}

# pingpong_datagrams TIMES: libfabric's over its reliable datagrams, with tags, of all sizes that it knows. It connects in the first of them, and
# is ended behind the last that is wanted, for it goes on to 6 MiB. One queue of completions is for its 256 peers otherwise, more than
# soft-RoCE has.
pingpong_datagrams() {
    local command=(fi_pingpong -p "verbs;ofi_rxm" -e rdm -m tagged -d rxe0 -S all -I "$1") before=$(packets) server client try
    export FI_UNIVERSE_SIZE=2
    $limit $idle taskset -c 1 "${command[@]}" > /tmp/server 2>&1 &
    server=$!
    until_listening 47592
    $limit $idle taskset -c 0 stdbuf -oL "${command[@]}" 10.0.0.1 > /tmp/client 2>&1 &
    client=$!
    for try in $(seq 600); do
        grep -q '^1m ' /tmp/client && break
        kill -0 $client 2> /dev/null || break
        sleep 0.2
    done
    kill $client $server 2> /dev/null
    wait
    if ! grep -q '^1m ' /tmp/client; then
        echo "${command[*]}" >&2
        tail -n 20 /tmp/client /tmp/server >&2
        exit 1
    fi
    cat /tmp/client
    echo "packets $(($(packets) - before))"
}

# open_mpi CASE BYTES WINDOW TIMES...: over UCX, which may use nothing but RC of this device. Its wire-up drops every packet on
# soft-RoCE without the two variables about GIDs. At its end, when all is printed, it hangs now and then on soft-RoCE.
open_mpi() {
    local before=$(packets)
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    export UCX_UD_VERBS_ETH_DGID_CHECK=n UCX_UD_ETH_DGID_CHECK=n UCX_NET_DEVICES=rxe0:1 UCX_TLS=rc,self
    $limit $idle mpirun -n 2 --bind-to core --mca pml ucx --mca osc ^ucx --mca opal_common_ucx_tls any \
        --mca opal_common_ucx_devices any /lab/bin/openmpi "$@" 2> /tmp/mpirun || cat /tmp/mpirun >&2
    echo "packets $(($(packets) - before))"
}

# A pipe to each rank.
pipes() {
    rm -f /run/roce-bench.0 /run/roce-bench.1
    mkfifo /run/roce-bench.0 /run/roce-bench.1
}

# count CASE TIMES: callgrind's file of rank 0, of `count` or `count-bare`.
count() {
    pipes
    rm -f /tmp/callgrind.out
    wrap="valgrind --tool=callgrind --collect-atstart=no --toggle-collect=*counted_send* --toggle-collect=*counted_receive* --callgrind-out-file=/tmp/callgrind.out" \
        ours "$1" 8 "$2" > /dev/null && cat /tmp/callgrind.out
}
