#!/usr/bin/env bash
# A real, private, loopback-only SLURM cluster on one machine.
#
#   slurm-cluster.sh up [--nodes N] [--acct dbd|none] [--auth munge|none]
#   slurm-cluster.sh down [--purge]      slurm-cluster.sh status      slurm-cluster.sh env
#   slurm-cluster.sh kill-node cpu2      slurm-cluster.sh start-node cpu2
#   slurm-cluster.sh stop-dbd | start-dbd      (simulate "sacct unavailable")
#   slurm-cluster.sh stop-ctld | start-ctld    (the controller is away for a while)
#
# Everything lives in $SLURM_MINI_ROOT (default /tmp/slurm-mini-$UID; keep it SHORT:
# unix sockets below it must stay under 108 bytes).  Nothing in /etc is read or written.
# Works as root or as an ordinary user.  No systemd.  Stops only pids it started.
set -uo pipefail
ROOT=${SLURM_MINI_ROOT:-/tmp/slurm-mini-$(id -u)}
PKG=${SLURM_MINI_PKG:-$HOME/.cache/slurm-mini/pkg}   # where a rootless install is unpacked
NODES=${SLURM_MINI_NODES:-3}          # cpu nodes (one gpu node is added)
CPUS=${SLURM_MINI_CPUS:-4}            # virtual cpus of each
MEM=${SLURM_MINI_MEM:-4000}           # MB of each
GPUS=${SLURM_MINI_GPUS:-2}
ARRAY=${SLURM_MINI_ARRAY:-1001}       # the tasks of the largest array
ACCT=${SLURM_MINI_ACCT:-none}         # none | dbd
AUTH=${SLURM_MINI_AUTH:-munge}        # munge | none
INSTALL=${SLURM_MINI_INSTALL:-unpack} # when the machine has no slurm: unpack | apt (root) | no
ME=$(id -un)

say() { printf 'cluster: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
# Debian ships the daemons as *-wlm behind alternatives; they look at their own argv[0]
# (a daemon run as "slurmctld-wlm" silently loses all Gres), hence links with the right names.
mkdirs() {
  [ ${#ROOT} -le 60 ] || die "SLURM_MINI_ROOT is too long (${#ROOT} > 60 characters) for unix sockets: $ROOT"
  mkdir -p "$ROOT" && [ -O "$ROOT" ] || die "$ROOT belongs to somebody else"
  mkdir -p "$ROOT"/{etc,log,run,pid,state,spool,dev,bin,sbin,munge,db}; chmod 755 "$ROOT"; chmod 700 "$ROOT"/{munge,db}
}

# ---- locating / installing the programs -------------------------------------------------
use() { # prefix ('' = the system's own)
  PREFIX=$1; PLUGINS=$PREFIX/usr/lib/$(uname -m)-linux-gnu/slurm-wlm
  [ -n "$PREFIX" ] && export LD_LIBRARY_PATH="$PREFIX/usr/lib/$(uname -m)-linux-gnu:$PLUGINS"
  return 0
}
complete() {
  [ -x "$1/usr/sbin/slurmctld-wlm" ] && [ -x "$1/usr/sbin/slurmd-wlm" ] && [ -x "$1/usr/bin/sbatch" ] || return 1
  [ "$AUTH" = none ] || [ -x "$1/usr/sbin/munged" ] || return 1
  [ "$ACCT" = none ] || { [ -x "$1/usr/sbin/slurmdbd" ] && [ -x "$1/usr/sbin/mariadbd" ]; } || return 1
}
set_paths() { if complete ""; then use ""; elif complete "$PKG"; then use "$PKG"; else return 1; fi; }
packages() {
  echo slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge
  [ "$ACCT" = dbd ] && echo slurmdbd slurm-wlm-mysql-plugin mariadb-server-core mariadb-client-core
}
install() {
  set_paths && return 0
  local p log=$ROOT/log/install.log; p=$(packages)
  case $INSTALL in
  no) die "slurm is not installed (SLURM_MINI_INSTALL=no)";;
  apt)
    [ "$(id -u)" = 0 ] || die "SLURM_MINI_INSTALL=apt needs root"
    local pol=/usr/sbin/policy-rc.d made=   # 101: start no service
    [ -e $pol ] || { printf '#!/bin/sh\nexit 101\n' >$pol; chmod +x $pol; made=1; }
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $p; } >"$log" 2>&1
    local rc=$?; [ -n "$made" ] && rm -f $pol
    [ $rc = 0 ] || { tail -5 "$log" >&2; die "apt-get install failed"; };;
  *) # unpack: no root, nothing outside $PKG is touched
    say "unpacking the slurm packages under $PKG"
    mkdir -p "$PKG.deb" "$PKG" "$PKG.apt/lists/partial" "$PKG.apt/cache/archives/partial"
    local apt="apt-get -q -o Dir::State::lists=$PKG.apt/lists -o Dir::Cache=$PKG.apt/cache -o Debug::NoLocking=1 -o APT::Sandbox::User=" all
    # install -s: the packages with those of their dependencies which this machine lacks
    { $apt update && all=$($apt install -s --no-install-recommends $p | awk '/^Inst/{print $2}') && [ -n "$all" ] &&
      (cd "$PKG.deb" && $apt download $all); } >"$log" 2>&1 || { tail -5 "$log" >&2; die "could not download: $p"; }
    local d; for d in "$PKG.deb"/*.deb; do dpkg -x "$d" "$PKG" || die "dpkg -x $d"; done; rm -rf "$PKG.deb" "$PKG.apt";;
  esac
  set_paths || die "programs still missing after the install; see $log"
}

# ---- processes ---------------------------------------------------------------------------
alive() { # name: is the recorded pid still that very process?
  local f=$ROOT/pid/$1 pid start
  [ -s "$f" ] || return 1
  read -r pid start <"$f"
  [ -r "/proc/$pid/stat" ] && [ "$(sed 's/^.*) //' "/proc/$pid/stat" | cut -d' ' -f20)" = "$start" ] \
    && [ "$(sed 's/^.*) //' "/proc/$pid/stat" | cut -c1)" != Z ]
}
spawn() { # name command...
  local n=$1; shift
  alive "$n" && return 0
  ( cd "$ROOT/run"; exec setsid "$@" </dev/null >>"$ROOT/log/$n.out" 2>&1 ) &
  local pid=$!
  disown $pid 2>/dev/null
  echo "$pid $(sed 's/^.*) //' /proc/$pid/stat 2>/dev/null | cut -d' ' -f20)" >"$ROOT/pid/$n"
}
stop() { # name [signal]: TERM (or signal), then KILL after 10 s
  local n=$1 sig=${2:-TERM} pid i
  alive "$n" || { rm -f "$ROOT/pid/$n"; return 0; }
  read -r pid _ <"$ROOT/pid/$n"
  kill -"$sig" "$pid" 2>/dev/null
  for i in $(seq 100); do alive "$n" || break; sleep 0.1; done
  alive "$n" && { say "$n did not stop, KILL"; kill -KILL "$pid"; sleep 0.3; }
  rm -f "$ROOT/pid/$n"
}
wait_for() { # seconds what command...
  local t=$1 what=$2 i; shift 2
  for i in $(seq $((t*10))); do "$@" >/dev/null 2>&1 && return 0; case $what in *" "*) ;; *) alive "$what" || break;; esac; sleep 0.1; done
  say "no success waiting (up to ${t}s) for $what; logs in $ROOT/log"; tail -n 5 "$ROOT"/log/*.out "$ROOT"/log/*.log >&2 2>/dev/null; return 1
}
free_ports() { python3 - "$1" <<'P'
import socket,sys
s=[socket.socket() for _ in range(int(sys.argv[1]))]
[x.bind(("127.0.0.1",0)) for x in s]; print(*[x.getsockname()[1] for x in s])
P
}

any_alive() { local f; for f in "$ROOT"/pid/*; do [ -e "$f" ] && alive "${f##*/}" && return 0; done; return 1; }

# ---- configuration -----------------------------------------------------------------------
nodes() { seq -f 'cpu%g' "$NODES"; echo gpu1; }
configure() {
  local h anyaddr=1; h=$(hostname -s)
  # NoInAddrAny binds to what the host's own name resolves to: of use only where that is the loopback
  getent ahosts "$h" | awk '$1!~/^127\./{bad=1} END{exit bad||!NR}' || { anyaddr=
    say "the host name $h does not resolve to 127.0.0.1: some daemons will listen on every interface (munge still guards them)"; }
  any_alive && { . "$ROOT/etc/settings"; return 0; }   # a second `up` keeps the running cluster's settings
  local ports; read -ra ports <<<"$(free_ports $((NODES+3)))"
  cat >"$ROOT/etc/settings" <<E
NODES=$NODES CPUS=$CPUS MEM=$MEM GPUS=$GPUS ARRAY=$ARRAY ACCT=$ACCT AUTH=$AUTH
E
  for g in $(seq 0 $((GPUS-1))); do ln -sfn /dev/null "$ROOT/dev/fakegpu$g"; done   # slurmd wants a character device
  {
  cat <<E
ClusterName=mini
SlurmctldHost=$h(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmUser=$ME
SlurmdUser=$ME
PluginDir=$PLUGINS
# --- loopback only
${anyaddr:+CommunicationParameters=NoCtldInAddrAny,NoInAddrAny}
# --- no cgroups, no hardware checks: runs in containers and unprivileged
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
SlurmdParameters=config_overrides
SwitchType=switch/none
MpiDefault=none
# --- scheduling
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,batch_sched_delay=0,sched_interval=2,sched_min_interval=0,default_queue_depth=1000
PriorityType=priority/basic
DefMemPerCPU=200
MaxArraySize=$ARRAY
MaxJobCount=20000
MinJobAge=600
JobRequeue=1
EnforcePartLimits=ALL
# --- quick reactions
SlurmctldTimeout=30
SlurmdTimeout=10
InactiveLimit=0
KillWait=2
UnkillableStepTimeout=10
ReturnToService=2
HealthCheckInterval=0
MessageTimeout=20
PropagateResourceLimits=NONE
# --- files
StateSaveLocation=$ROOT/state
SlurmdSpoolDir=$ROOT/spool/%n
SlurmctldPidFile=$ROOT/run/slurmctld.pid
SlurmdPidFile=$ROOT/run/slurmd.%n.pid
SlurmctldLogFile=$ROOT/log/slurmctld.log
SlurmdLogFile=$ROOT/log/slurmd.%n.log
SlurmctldDebug=info
SlurmdDebug=info
PlugStackConfig=$ROOT/etc/plugstack.conf
E
  if [ "$AUTH" = munge ]; then echo "AuthType=auth/munge"; echo "CredType=cred/munge"; echo "AuthInfo=socket=$ROOT/run/munge.socket"
  else echo "AuthType=auth/none"; echo "CredType=cred/none"; fi
  if [ "$ACCT" = dbd ]; then cat <<E
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=${ports[1]}
AccountingStoreFlags=job_comment
AccountingStorageTRES=gres/gpu
E
    [ "$AUTH" = munge ] && echo "AccountingStoragePass=$ROOT/run/munge.socket"
  else echo "AccountingStorageType=accounting_storage/none"; fi
  cat <<E
# --- virtual nodes: one slurmd each, all on this host
GresTypes=gpu
E
  local i
  for i in $(seq "$NODES"); do echo "NodeName=cpu$i NodeHostname=$h NodeAddr=127.0.0.1 Port=${ports[$((i+1))]} CPUs=$CPUS RealMemory=$MEM TmpDisk=0 Feature=virtual State=UNKNOWN"; done
  echo "NodeName=gpu1 NodeHostname=$h NodeAddr=127.0.0.1 Port=${ports[$((NODES+2))]} CPUs=$CPUS RealMemory=$MEM Gres=gpu:$GPUS Feature=virtual,gpu State=UNKNOWN"
  cat <<E
PartitionName=cpu Nodes=cpu[1-$NODES] Default=YES DefaultTime=10 MaxTime=60 State=UP
PartitionName=gpu Nodes=gpu1 DefaultTime=10 MaxTime=60 State=UP
PartitionName=short Nodes=cpu[1-$NODES] DefaultTime=1 MaxTime=1 State=UP
E
  } >"$ROOT/etc/slurm.conf"
  echo "NodeName=gpu1 Name=gpu File=$ROOT/dev/fakegpu[0-$((GPUS-1))]" >"$ROOT/etc/gres.conf"
  echo "CgroupPlugin=cgroup/v1" >"$ROOT/etc/cgroup.conf"
  : >"$ROOT/etc/plugstack.conf"
  if [ "$ACCT" = dbd ]; then
    cat >"$ROOT/etc/slurmdbd.conf" <<E
DbdHost=$h
DbdAddr=127.0.0.1
${anyaddr:+CommunicationParameters=NoInAddrAny}
DbdPort=${ports[1]}
SlurmUser=$ME
PluginDir=$PLUGINS
PidFile=$ROOT/run/slurmdbd.pid
LogFile=$ROOT/log/slurmdbd.log
DebugLevel=info
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=$ME
StorageLoc=slurm_acct
E
    [ "$AUTH" = munge ] && { echo "AuthType=auth/munge"; echo "AuthInfo=socket=$ROOT/run/munge.socket"; } >>"$ROOT/etc/slurmdbd.conf"
    [ "$AUTH" = none ] && echo "AuthType=auth/none" >>"$ROOT/etc/slurmdbd.conf"
    chmod 600 "$ROOT/etc/slurmdbd.conf"
    cat >"$ROOT/etc/my.cnf" <<E
[mariadbd]
datadir=$ROOT/db
socket=$ROOT/run/mysql.sock
pid-file=$ROOT/run/mysql.pid
skip-networking
innodb_buffer_pool_size=64M
innodb_log_file_size=32M
innodb_flush_log_at_trx_commit=0
innodb_lock_wait_timeout=900
performance_schema=0
lc-messages-dir=$PREFIX/usr/share/mysql
plugin-dir=$PREFIX/usr/lib/mysql/plugin
E
  fi
  # Client wrappers. Put $ROOT/bin first on PATH: the snakemake jobstep plugin drops SLURM_CONF
  # from the environment of the srun it starts inside a job, so the variable alone is not enough.
  local c
  for c in sbatch srun salloc squeue scancel sinfo scontrol sacct sacctmgr sshare sstat sprio sdiag sattach sbcast sreport strigger; do
    [ -x "$PREFIX/usr/bin/$c" ] || continue
    printf '#!/bin/sh\nexport SLURM_CONF=%s\n%sexec %s "$@"\n' "$ROOT/etc/slurm.conf" \
      "${PREFIX:+export LD_LIBRARY_PATH=$LD_LIBRARY_PATH
}" "$PREFIX/usr/bin/$c" >"$ROOT/bin/$c"; chmod +x "$ROOT/bin/$c"
  done
  cat >"$ROOT/env.sh" <<E
export SLURM_CONF=$ROOT/etc/slurm.conf
export PATH=$ROOT/bin:\$PATH
E
}

# ---- start / stop ------------------------------------------------------------------------
start_dbd() {
  if [ ! -d "$ROOT/db/mysql" ]; then
    local b=$PREFIX/usr
    "$b/bin/mariadb-install-db" --no-defaults --user="$ME" --basedir="$b" --datadir="$ROOT/db" --auth-root-authentication-method=normal \
       --skip-test-db --skip-name-resolve --lc-messages-dir="$b/share/mysql" >"$ROOT/log/install-db.out" 2>&1 \
       || { tail -3 "$ROOT/log/install-db.out" >&2; die "mariadb-install-db failed"; }
  fi
  local u=(); [ "$(id -u)" = 0 ] && u=(--user=root)
  spawn mariadbd "$PREFIX/usr/sbin/mariadbd" --defaults-file="$ROOT/etc/my.cnf" "${u[@]}"
  wait_for 30 mariadbd "$PREFIX/usr/bin/mariadb" --no-defaults -u root --socket="$ROOT/run/mysql.sock" -e "select 1" || exit 1
  "$PREFIX/usr/bin/mariadb" --no-defaults -u root --socket="$ROOT/run/mysql.sock" -e "create user if not exists '$ME'@localhost; grant all on slurm_acct.* to '$ME'@localhost" || exit 1
  # the mysql client library has no option for the socket in slurmdbd.conf: it reads this variable
  spawn slurmdbd env SLURM_CONF="$ROOT/etc/slurm.conf" MYSQL_UNIX_PORT="$ROOT/run/mysql.sock" "$PREFIX/usr/sbin/slurmdbd" -D
  wait_for 30 slurmdbd bash -c "exec 3<>/dev/tcp/127.0.0.1/$(sed -n 's/^DbdPort=//p' "$ROOT/etc/slurmdbd.conf")" || exit 1
  "$ROOT/bin/sacctmgr" -n show cluster 2>/dev/null | grep -qw mini || "$ROOT/bin/sacctmgr" -i add cluster mini >>"$ROOT/log/sacctmgr.out" 2>&1
  "$ROOT/bin/sacctmgr" -n show assoc user="$ME" account=lab 2>/dev/null | grep -q lab || {
    "$ROOT/bin/sacctmgr" -i add account lab cluster=mini; "$ROOT/bin/sacctmgr" -i add user "$ME" account=lab
    "$ROOT/bin/sacctmgr" -i modify user "$ME" set defaultaccount=lab; } >>"$ROOT/log/sacctmgr.out" 2>&1
  return 0
}
start_node() { spawn "slurmd.$1" env SLURM_CONF="$ROOT/etc/slurm.conf" "$ROOT/sbin/slurmd" -D -N "$1" -f "$ROOT/etc/slurm.conf" -d "$ROOT/sbin/slurmstepd"; }
start_ctld() { spawn slurmctld "$ROOT/sbin/slurmctld" -D -f "$ROOT/etc/slurm.conf"; }
up() {
  mkdirs
  any_alive && . "$ROOT/etc/settings"
  install; configure
  for d in slurmctld slurmd slurmstepd; do ln -sfn "$PREFIX/usr/sbin/$d-wlm" "$ROOT/sbin/$d"; done
  export SLURM_CONF=$ROOT/etc/slurm.conf
  if [ "$AUTH" = munge ]; then
    [ -s "$ROOT/munge/key" ] || { (umask 077; head -c 128 /dev/urandom >"$ROOT/munge/key"); chmod 400 "$ROOT/munge/key"; }
    spawn munged "$PREFIX/usr/sbin/munged" --foreground --force --num-threads=4 --key-file="$ROOT/munge/key" --seed-file="$ROOT/munge/seed" \
       --socket="$ROOT/run/munge.socket" --pid-file="$ROOT/run/munged.pid" --log-file="$ROOT/log/munged.log"
    wait_for 10 munged test -S "$ROOT/run/munge.socket" || exit 1
  fi
  [ "$ACCT" = dbd ] && start_dbd
  start_ctld
  local n
  for n in $(nodes); do mkdir -p "$ROOT/spool/$n"; start_node "$n"; done
  wait_for 30 slurmctld "$ROOT/bin/scontrol" ping || exit 1
  wait_for 30 "all nodes idle" ready || { "$ROOT/bin/sinfo" -N >&2; exit 1; }
  say "up: $((NODES+1)) nodes; use:  . $ROOT/env.sh"
}
ready() {
  [ "$("$ROOT/bin/sinfo" -h -N -p cpu,gpu -o '%N %T' | sort -u | grep -cE ' (idle|mixed|allocated|completing)$')" = $((NODES+1)) ]
}
load() { [ -s "$ROOT/etc/settings" ] || { say "nothing at $ROOT"; exit "${1:-1}"; }; . "$ROOT/etc/settings"; set_paths; export SLURM_CONF=$ROOT/etc/slurm.conf; }
step_pids() { # node: the slurmstepd and job processes there (stepd first), by way of the step sockets in its spool
  local s j p pp
  for j in $(for s in "$ROOT/spool/$1/$1"_*.*; do [ -S "$s" ] && { s=${s##*/"$1"_}; echo "${s%%.*}"; }; done | sort -u); do
    for p in $("$ROOT/bin/scontrol" listpids "$j" "$1" 2>/dev/null | awk 'NR>1{print $1}'); do
      pp=$(awk '/^PPid/{print $2}' /proc/$p/status 2>/dev/null)
      [ "$(cat /proc/$pp/comm 2>/dev/null)" = slurmstepd ] && echo "$pp"
      echo "$p"
    done
  done | awk '!seen[$1]++'
}
end_pids() { local p; for p in "$@"; do kill -KILL "$p" 2>/dev/null; done; return 0; }
end_steps() { end_pids $(step_pids "$1"); }
down() {
  load 0
  if alive slurmctld; then
    timeout 20 "$ROOT/bin/scancel" --quiet --user="$ME" 2>/dev/null
    local i; for i in $(seq 60); do [ -z "$(timeout 5 "$ROOT/bin/squeue" -h 2>/dev/null)" ] && break; sleep 0.2; done
  fi
  local n p
  for n in $(nodes); do end_steps "$n"; done   # job steps outlive slurmd by design
  for n in $(nodes); do alive "slurmd.$n" && { read -r p _ <"$ROOT/pid/slurmd.$n"; kill -TERM "$p"; }; done
  for n in $(nodes); do stop "slurmd.$n"; done
  stop slurmctld; stop slurmdbd; stop mariadbd; stop munged
  [ "${1:-}" = --purge ] && rm -rf "$ROOT"
  say down
}
status() {
  load
  local f n rc=0
  for f in munged mariadbd slurmdbd slurmctld $(nodes | sed 's/^/slurmd./'); do
    [ -e "$ROOT/pid/$f" ] || continue
    if alive "$f"; then echo "$f running (pid $(cut -d' ' -f1 "$ROOT/pid/$f"))"; else echo "$f DEAD"; rc=1; fi
  done
  alive slurmctld || { echo "slurmctld not running"; return 1; }
  "$ROOT/bin/sinfo" -o '%P %D %T %c %m %G %N'; "$ROOT/bin/squeue" -h | wc -l | sed 's/$/ jobs queued or running/'
  return $rc
}

cmd=${1:-status}; shift || true
arg=
while [ $# -gt 0 ]; do case $1 in
  --nodes) NODES=$2; shift 2;; --acct) ACCT=$2; shift 2;; --auth) AUTH=$2; shift 2;;
  *) arg=$1; shift;; esac; done
case $cmd in
  up) up;; down) down "$arg";; status) status;; env) cat "$ROOT/env.sh";;
  kill-node) load   # a dead node takes its job steps along; the controller must not hear of it, so slurmd goes first
     pids=$(step_pids "$arg"); stop "slurmd.$arg" KILL; end_pids $pids;;
  start-node) load; start_node "$arg";;
  stop-dbd) load; stop slurmdbd;; start-dbd) load; start_dbd;;
  stop-ctld) load; stop slurmctld;;
  start-ctld) load; start_ctld; wait_for 30 slurmctld "$ROOT/bin/scontrol" ping;;
  *) die "usage: slurm-cluster.sh up|down|status|env|kill-node N|start-node N|stop-dbd|start-dbd|stop-ctld|start-ctld";;
esac
