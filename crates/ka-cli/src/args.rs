//! What can be typed: one definition, from which come the parser, --help, completions and the manual pages.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{ArgGroup, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use ka_core::Config;
use ka_policy::Mode;

use crate::duration;
use crate::policy_flags::{self, PolicyFlags, on_only};
use ka_reach::diag::State;

/// TCP keepalive that works: for programs, for running processes, and for a machine
///
/// Linux has TCP keepalive off by default; when it is turned on, the first probe comes after two hours. ka gives every
/// TCP socket a policy instead: idle seconds, seconds between probes, and how many go unanswered before the connection
/// is dead.
#[derive(Debug, Parser)]
#[command(
    name = "ka",
    bin_name = "ka",
    version,
    arg_required_else_help = true,
    after_help = "Examples:
  ka run -- psql -h db.example.net         a program, under 60,10,6
  ka run -d 280 -i 30 -c 5 -- ./server     under your own policy
  ka attach -p 280,30,5 1234               a process that is running
  ka ls --off                              sockets without keepalive
  ka plan --preset aws-nlb                 what to set for a load balancer

Status: 0: success. 1: ls --off found a socket, check found that a way is not available, or ls, check, attach or cgroup could \
not handle all sockets. 2: wrong arguments, or a failure before any work was done. 3: ls --off found none, but keepalive of \
some is unknown. ka run ends as the program does."
)]
pub(crate) struct Ka {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(Run),
    Attach(Attach),
    Ls(Ls),
    Check(Check),
    Plan(Plan),
    Defaults(Defaults),
    Cgroup(Cgroup),
    Completions(Completions),
}

/// Runs a program whose TCP sockets all have the policy
///
/// Via preload, ka becomes the program: the PID, signals, terminal and exit status are the program's own. Via seccomp,
/// ka stays as the program's supervisor. The program has another PID, and ka passes signals, job control and the exit
/// status on. ka takes seccomp if preload does not reach the program, and, with a message, if libka_preload.so is
/// missing.
///
/// Preload does not reach static programs, Go programs, programs linked to a library made by Go, programs that make
/// their system calls themselves, and programs of other C libraries. ka recognizes these by their files.
///
/// Preload does not reach programs that wrappers start without LD_PRELOAD or in another root folder. ka knows these
/// wrappers by name, also behind nice, timeout, env and similar programs: sudo, sudoedit, doas, pkexec, run0, login; su
/// and runuser with -, -l or --login; newgrp with -; env with -i, -u LD_PRELOAD or LD_PRELOAD=; setpriv with
/// --reset-env; mptcpize; chroot, arch-chroot, bwrap, flatpak, systemd-nspawn, firejail, schroot, proot, nsjail, runc,
/// crun, lxc-attach, lxc-execute, lxc-start; unshare with --root; nsenter with --mount, --root or --all; chpst with -/;
/// start-stop-daemon with --chroot. ka does not look into scripts, nor into programs that start their children with an
/// empty environment: use --via seccomp for these. For an ordinary user, ka does not run setuid programs such as sudo:
/// the seccomp filter would keep them from gaining their rights. Use sudo ka run.
///
/// If a call blocks the supervisor for 2 s, ka lets it through and names the process on standard error. The socket may
/// then lack the policy.
///
/// If no policy option is given, the KA_ variables and /etc/ka.conf decide. If they name none, the policy is 60,10,6.
/// If ka cannot reach the program, it refuses to run it.
#[derive(Args, Debug)]
#[command(
    mut_arg("whole", on_only),
    after_help = "Examples:
  ka run -- psql -h db.example.net
  ka run -v -p 280,30,5 --mode floor -- ./server --port 8080
  sudo ka run -d 5m -- nginx
  ka run --via seccomp -- ./test.sh      its static and Go children too
  sudo ka run -- sudo -u app ./server    via seccomp: sudo drops LD_PRELOAD

Policy text: A policy is three values, idle, intvl and cnt, with commas or colons between them, as 60,10,6 or 1m:10s:6. Or \
it is items with commas between them, in any order and each at most once: idle=TIME, intvl=TIME, cnt=N, \
user_timeout=TIME, and on or off. Blanks around values and items are ignored. A time is a number with ms, s, m, h or d \
behind it. Without a unit, idle and intvl are seconds, and the user timeout is milliseconds. A user timeout below 1000 needs \
its unit. idle and intvl are whole seconds. user_timeout=none is 0, and user_timeout=auto is 1000 * (idle + intvl * cnt) \
ms. The flags, the KA_ variables and /etc/ka.conf take the same values.

Status: the program's; 127 no such program, 126 it cannot be executed, 125 ka could not run it under the policy.

Environment: KA_PRELOAD names the libka_preload.so to use; under sudo, doas or pkexec, root must own it and
all folders that lead to it. The other KA_ variables are in ka-preload(7). If a name looks like a misspelled one of \
these, ka prints a message, unless KA_QUIET is 1."
)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) policy: PolicyFlags,
    /// Whether the program may override the policy
    #[arg(long, value_parser = policy_flags::mode(), help_heading = "Policy")]
    pub(crate) mode: Option<Mode>,
    /// The way to reach the program
    #[arg(long, value_enum, default_value_t = Via::Auto, value_name = "WAY")]
    pub(crate) via: Via,
    /// Runs the program even if ka cannot reach it, with a warning
    #[arg(long)]
    pub(crate) best_effort: bool,
    /// Denies the program io_uring, which bypasses the supervisor: io_uring_setup fails with ENOSYS. Via seccomp
    #[arg(long)]
    pub(crate) no_io_uring: bool,
    /// Prints on standard error how ka reaches the program, why it rejected other ways, and whether a server may do the
    /// work
    #[arg(short, long)]
    pub(crate) verbose: bool,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "PROGRAM")]
    pub(crate) program: Vec<OsString>,
}

/// A way to reach a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Via {
    /// The first way that reaches the program
    Auto,
    /// LD_PRELOAD: programs that the dynamic loader starts
    Preload,
    /// A supervisor with seccomp(2): all programs, also static and Go ones, and their children
    Seccomp,
    /// A cgroup of its own, in which the kernel sets the sockets by eBPF: all programs and their children. Used only on
    /// request. Needs CAP_BPF, CAP_NET_ADMIN and cgroup v2
    Cgroup,
}

/// Sets the policy on the TCP sockets of running processes
///
/// ka does not stop the processes. It duplicates each socket out of its process, sets it, and closes the duplicate. ka
/// also sets listeners; connections that they accept inherit the policy.
///
/// Each value of the policy comes from the first source that names it. The sources are the flags, the KA_ variables,
/// /etc/ka.conf, and the default 60,10,6. The mode follows the same order, and its default is force. A whole policy
/// (-p, KA_POLICY) takes no values from later sources. KA_RULES is ignored here. With --all and --user, ka leaves the
/// programs of KA_SKIP alone. A process may already have another policy of ka: from ka run, libka_preload.so or its
/// cgroup. ka prints that policy, because it applies to sockets that are opened later.
#[derive(Args, Debug)]
#[command(
    group = ArgGroup::new("whose").required(true).args(["pids", "all", "user", "undo"]),
    after_help = "Examples:
  ka attach 1234                    60,10,6 for one process
  ka attach -p 280,30,5 $(pidof nginx)
  sudo ka attach --all --port 5432 --mode floor
  ka attach --follow 1234           also what it opens later, until it ends
  sudo ka attach --all --dry-run    what would change
  ka attach --json -p 280,30,5 1234 >before.json
  ka attach --undo before.json      back to what the sockets had
  sudo ka attach --all --via bpf    this network namespace, in one pass

Status: 1 if a socket or a process could not be set, or with --spread if a signal came before all were set.

JSON: set, unchanged, failed (numbers of sockets), without_user_timeout (number of sockets that cannot have the \
policy's user timeout), dry_run, policy, mode, not_found (sockets to undo that are closed, or whose process has \
ended), denied, skipped (processes that ka may not examine, \
or leaves alone because of KA_SKIP), sockets_left, processes_left (left by a signal), others (other policies of ka that the \
processes have: pid, way, of, policy, mode), sockets (pid, fd, inode, comm, local, peer, result, before, after, error, note). \
result is set, would-set (on a dry run), unchanged, failed, or denied (with --all and --user, the process may not be examined). before and after are \
null, or keepalive, idle, intvl, cnt, user_timeout_ms. With --follow, a line for each socket.

A program can hold the lock of its socket for as long as it likes. If a socket does not answer within 2 s, ka names it, \
leaves it unchanged, and continues with the others. After 8 such sockets of one user, ka leaves alone all \
other sockets that this user made.

A process of another user, or one that is not dumpable, needs CAP_SYS_PTRACE (run ka as root). Where Yama's \
kernel.yama.ptrace_scope is 1 or more (Ubuntu's default is 1), your own processes need it too.

Sockets that are set together send their probes together from then on. If a socket had keepalive on and has been \
silent for longer than the new idle time, it sends a probe at once. Ten thousand sockets then send ten thousand \
packets of 52 bytes. To avoid such a burst, --spread sets them over a time."
)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag")]
pub(crate) struct Attach {
    #[command(flatten)]
    pub(crate) policy: PolicyFlags,
    /// Whether sockets may keep the keepalive settings of their program. Default: KA_MODE, or force
    #[arg(long, value_parser = policy_flags::mode(), help_heading = "Policy")]
    pub(crate) mode: Option<Mode>,
    /// Processes, by number
    #[arg(value_name = "PID", value_parser = pid)]
    pub(crate) pids: Vec<i32>,
    /// All processes
    #[arg(short, long)]
    pub(crate) all: bool,
    /// The processes of a user, by name or number
    #[arg(long, value_name = "USER")]
    pub(crate) user: Option<OsString>,
    /// Restores the settings that sockets had before an earlier ka attach --json. The file holds the output of that
    /// command
    #[arg(long, value_name = "FILE", conflicts_with_all = ["idle", "intvl", "cnt", "user_timeout", "whole", "mode", "via", "port", "follow"])]
    pub(crate) undo: Option<PathBuf>,
    /// The way to reach the sockets
    #[arg(long, value_enum, default_value_t = AttachVia::Pidfd, value_name = "WAY")]
    pub(crate) via: AttachVia,
    /// Only sockets whose local or peer port is this one
    #[arg(long, value_parser = port)]
    pub(crate) port: Option<u16>,
    /// Continues, and sets sockets that are opened later, until the processes end or SIGINT or SIGTERM comes
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// How often --follow looks
    #[arg(long, value_name = "S", default_value = "1s", value_parser = duration::fine_seconds, requires = "follow")]
    pub(crate) interval: u32,
    /// Spreads the work over this time, so that the probes of many sockets do not all go out at once
    #[arg(long, value_name = "S", value_parser = duration::fine_seconds)]
    pub(crate) spread: Option<u32>,
    /// Sets sockets even if ka cannot keep their net_cls or net_prio class (cgroups of version 1), so that they lose it
    #[arg(long)]
    pub(crate) lose_class: bool,
    /// Sets nothing, prints what would be set
    #[arg(short = 'n', long)]
    pub(crate) dry_run: bool,
    /// Prints one line per socket
    #[arg(short, long)]
    pub(crate) verbose: bool,
    /// Prints JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// A way to reach the sockets that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AttachVia {
    /// Through the processes that have them
    Pidfd,
    /// With --all, by an eBPF iterator: all of this network namespace in one pass, also those that no process has yet.
    /// Needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN, and Linux 6.1
    Bpf,
}

/// Lists TCP sockets, with their processes and their keepalive
///
/// Shows whether keepalive is on, its timers, when the next probe is due and how many probes had no answer. If ka may
/// not read a socket, it shows what follows from the kernel's list, and ? for the rest. Run ka as root to see all.
///
/// Without --netns and --all-netns, ka lists this network namespace only. A container usually has its own. With PIDs,
/// ka lists the network namespaces that these processes are in. Only --all-netns finds sockets of these processes in
/// other namespaces.
///
/// Columns: PROCESS is the process with the lowest PID that has the socket; nginx/812+3 means that 3 more processes
/// share it. KEEP is whether keepalive is on. IDLE, INTVL and CNT are the timers in force. USER is TCP_USER_TIMEOUT.
/// NEXT is the time until the next probe, if the connection stays silent. LOST is how many probes in a row had no
/// answer. RISK names a problem of the settings or of the connection. NETNS, with --all-netns, is the network namespace
/// as --netns takes it: its name of ip-netns(8), or the lowest PID in it.
///
/// Risks: "off": keepalive is off. "slow": the first probe comes after more than 350 s, when AWS's load balancers and
/// NAT gateways have forgotten the connection. "suspended": data is unacknowledged, and the kernel sends no keepalive
/// probe until the peer acknowledges it. "user-timeout": TCP_USER_TIMEOUT ends a silent connection earlier or later
/// than cnt would. "unanswered": at least half of cnt probes in a row had no answer, so the peer is probably gone.
///
/// On a terminal, ka fits the table to its width. It leaves out USER, FD, STATE, INTVL, CNT, NEXT, LOST and IDLE, in
/// this order, until the rest fits. It shortens long addresses and names in the middle. Elsewhere, as in ka ls | less,
/// ka prints everything.
///
/// A socket that neither listens nor has begun to connect is not in the kernel's list; ka check PID counts it, and ka
/// attach sets it.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  ka ls                            what you may see in this network namespace
  ka ls 1234 5678                  the sockets of two processes
  sudo ka ls --state established --port 5432
  sudo ka ls --all-netns --risk    what needs attention, in containers too
  ka ls --off --state established 1234 || echo 'not all have keepalive'
  sudo ka ls --netns blue --json

Status: with --off, 0 if keepalive is on for all sockets, 1 if it is off for some, 3 if it is off for none but unknown for \
some. Without --off, 1 if ka names on standard error what it could not read: a process that you asked for, a network \
namespace, or a socket that did not answer within 2 s because a program holds its lock. 2 if nothing could be listed.

JSON keys: An array with an object per socket.
  netns: string. The network namespace, as in the column NETNS. null: the one that ka runs in, without --all-netns.
  pid: integer. The process with the lowest PID that has the socket. null: no process has it, or ka may not see which.
  fd: integer. Its lowest descriptor of the socket. null: as pid.
  comm: string. Its name. null: as pid, or the name cannot be read.
  others: array of integers. PIDs of the other processes that have the socket. With PIDs, only those among them.
  local: string. Local address and port.
  peer: string. Address and port of the peer. null: not connected.
  state: string. As --state takes it.
  keepalive: boolean. Whether keepalive is on. null: unknown.
  idle: integer, seconds. TCP_KEEPIDLE. null: unknown.
  intvl: integer, seconds. TCP_KEEPINTVL. null: unknown.
  cnt: integer, probes. TCP_KEEPCNT. null: unknown.
  user_timeout_ms: integer, milliseconds. TCP_USER_TIMEOUT, 0 if it is not set. null: unknown.
  next_probe_ms: integer, milliseconds. Time until the next probe, if the connection stays silent. null: none is due, or \
unknown.
  unanswered_probes: integer, probes. How many in a row had no answer. null: unknown.
  risks: array of strings. Any of the risks above. Empty: none.
  error: string. The reason why ka could not read the socket. null: none.")]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag")]
pub(crate) struct Ls {
    /// Only the sockets of these processes, by number
    #[arg(value_name = "PID", value_parser = pid)]
    pub(crate) pids: Vec<i32>,
    /// Only the sockets of this process, the same as PID alone. Repeatable
    #[arg(long, value_parser = pid)]
    pub(crate) pid: Vec<i32>,
    /// Only this state. Repeatable. Default: all but time-wait and syn-recv, which have no options. The kernel does not
    /// list sockets in state close
    #[arg(long, value_parser = state(), value_name = "STATE", value_delimiter = ',')]
    pub(crate) state: Vec<State>,
    /// Only sockets whose local or peer port is this one
    #[arg(long, value_parser = port)]
    pub(crate) port: Option<u16>,
    /// Only sockets whose keepalive is off or unknown; status 1 if it is off for some, 3 if it is only unknown for some
    #[arg(long)]
    pub(crate) off: bool,
    /// Only sockets with a risk
    #[arg(long)]
    pub(crate) risk: bool,
    /// In this network namespace: a name of ip-netns(8), a path, or a process's number. Needs CAP_SYS_ADMIN
    #[arg(long, value_name = "NS")]
    pub(crate) netns: Option<OsString>,
    /// In all network namespaces that processes of this machine are in. Needs CAP_SYS_ADMIN
    #[arg(long, conflicts_with = "netns")]
    pub(crate) all_netns: bool,
    /// Prints JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Prints which ways reach a program or a process, why others do not, and which command to use
///
/// For a process, ka also prints the policies that it has from libka_preload.so, from the supervisor of ka run --via
/// seccomp and from its cgroups. If some of its TCP sockets have no keepalive in spite of these, ka lists them and the
/// possible reasons. If ka lacks the rights to find something out, it prints unknown, and null in the JSON.
///
/// Without a program or process, ka prints which ways you may use on this machine, and what the others need.
///
/// On standard error, ka names mistakes in the KA_ variables and in /etc/ka.conf, unless KA_QUIET is 1.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  ka check
  ka check nginx
  ka check ./server
  ka check 1234

Status: 1 if ka run does not reach the program, if ka attach does not reach the process or one of its sockets, if \
a policy of ka has missed sockets of the process, or, without an argument, if a way is not available. 127: no such program. 126: not \
executable.")]
pub(crate) struct Check {
    /// A program by name or path, or a process by number
    #[arg(value_name = "PROGRAM|PID")]
    pub(crate) target: Option<OsString>,
    /// Prints JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Calculates a policy, and shows its effects and how to configure it elsewhere
///
/// ka warns of a user timeout that is shorter than the idle time, of a policy with a single probe, and of an interval
/// that is longer than the idle time. The JSON has these warnings in the key warnings.
#[derive(Args, Debug)]
#[command(
    group = ArgGroup::new("what").required(true).args(["detect", "path", "preset", "policy", "list"]),
    after_help = "Examples:
  ka plan --detect 30s    a dead peer is known within 30 s
  ka plan --path 350s     a path that forgets after 350 s idle stays open
  ka plan --preset aws-nlb --connections 50000
  ka plan --policy 60,10,6
  ka plan --list"
)]
pub(crate) struct Plan {
    /// A dead peer must be detected within this time, even if timers are late
    #[arg(long, value_name = "S", value_parser = duration::fine_seconds, allow_negative_numbers = true)]
    pub(crate) detect: Option<u32>,
    /// A middlebox on the path forgets a connection that is idle for this long
    #[arg(long, value_name = "S", value_parser = duration::seconds, allow_negative_numbers = true)]
    pub(crate) path: Option<u32>,
    /// A well-known middlebox, by its name or another name in --list
    #[arg(long, value_name = "NAME")]
    pub(crate) preset: Option<String>,
    /// This policy: 60,10,6, or any of idle=, intvl=, cnt= and user_timeout= with commas between them, as in ka-run(1)
    #[arg(short = 'p', long, value_name = "TEXT", value_parser = policy_flags::policy)]
    pub(crate) policy: Option<Config>,
    /// Lists the presets and the sources of their numbers
    #[arg(long)]
    pub(crate) list: bool,
    /// Shows the cost for this many connections
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = connections, allow_negative_numbers = true)]
    pub(crate) connections: u64,
    /// Prints JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Shows or sets the system's defaults
///
/// These are the three sysctls net.ipv4.tcp_keepalive_* of this network namespace. They apply to sockets whose program
/// turns keepalive on and sets no timers. They do not turn keepalive on: ka run and ka attach do that.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  ka defaults
  sudo ka defaults --set 60,10,6
  sudo ka defaults --set 60,10,6 --persist

Setting needs CAP_NET_ADMIN in the network namespace's user namespace, and a /proc/sys that can be written.")]
pub(crate) struct Defaults {
    /// Sets the values of idle, intvl and cnt that the policy names: all of them, or none on failure
    #[arg(long, value_name = "POLICY", value_parser = policy_flags::policy)]
    pub(crate) set: Option<Config>,
    /// Makes the setting permanent: writes this sysctl.d(5) file, which must be new or written by ka
    #[arg(long, value_name = "FILE", requires = "set", num_args = 0..=1, require_equals = true,
          default_missing_value = "/etc/sysctl.d/60-ka.conf")]
    pub(crate) persist: Option<PathBuf>,
    /// Prints JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// A policy for all programs of a cgroup, by eBPF
///
/// The kernel itself gives the policy to the sockets of the cgroup and of those below it. This includes static and Go
/// programs, io_uring, and programs that are started there later, such as a whole systemd service. No process runs
/// beside them.
#[derive(Args, Debug)]
#[command(
    arg_required_else_help = true,
    after_help = "Examples:
  sudo ka cgroup attach -p 280,30,5 system.slice/nginx.service
  sudo ka cgroup ls
  sudo ka cgroup detach system.slice/nginx.service"
)]
pub(crate) struct Cgroup {
    #[command(subcommand)]
    pub(crate) command: CgroupCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CgroupCommand {
    Attach(CgroupAttach),
    Detach(CgroupDetach),
    Ls(CgroupLs),
}

/// Gives a cgroup a policy, until ka cgroup detach or a reboot
///
/// ka sets the sockets that are already open. From then on, each socket gets the policy as it connects, listens or is
/// accepted. The policy replaces an earlier one of the same cgroup. A policy in mode force overrides the policies of
/// cgroups below. ka reports both cases: a policy above that overrides this one, and policies below that this one
/// overrides.
///
/// The mode and each value of the policy come from the first source that names them. The sources are the flags, the KA_
/// variables, /etc/ka.conf, and the defaults 60,10,6 and force.
#[derive(Args, Debug)]
#[command(
    mut_arg("whole", on_only),
    after_help = "Examples:
  sudo ka cgroup attach system.slice/nginx.service
  sudo ka cgroup attach -p 280,30,5 --mode default /sys/fs/cgroup/system.slice
  sudo ka cgroup attach --foreground kubepods.slice

Status: 1 if some open sockets could not be set or examined. With --foreground ka only reports this: 0 after a signal.

With --foreground ka tells the service manager when the policy is in force, and sends watchdog messages if requested \
(NOTIFY_SOCKET, WATCHDOG_USEC: sd_notify(3)). When the open sockets are set, ka drops all capabilities but CAP_BPF.

JSON: cgroup, policy, mode, set, unchanged, failed (numbers of open sockets), left (reasons why some sockets were not examined).

Needs CAP_BPF and CAP_NET_ADMIN, and CAP_PERFMON to set open sockets. Open sockets in other network namespaces (of containers) \
also need CAP_SYS_ADMIN and CAP_SYS_PTRACE; cgroups whose folders only their owner may read also need CAP_DAC_READ_SEARCH. \
Linux 5.9, and 6.1 to set open sockets and for --mode default; cgroup v2; and, without --foreground, the bpf filesystem, mounted \
at /sys/fs/bpf."
)]
pub(crate) struct CgroupAttach {
    #[command(flatten)]
    pub(crate) policy: PolicyFlags,
    /// Whether the cgroup's programs may override the policy. Default: KA_MODE, or force
    #[arg(long, value_parser = policy_flags::cgroup_mode(), help_heading = "Policy")]
    pub(crate) mode: Option<Mode>,
    /// The cgroup: its folder, or its name as in /proc/PID/cgroup
    #[arg(value_name = "CGROUP")]
    pub(crate) cgroup: OsString,
    /// Stays in the foreground. The policy ends when ka ends: at SIGINT or SIGTERM, when killed, or when the cgroup is
    /// removed
    ///
    /// A policy that the cgroup already has is not replaced. Both are in force until one of them ends. If they differ,
    /// the later one wins in mode force.
    #[arg(short, long)]
    pub(crate) foreground: bool,
    /// Accepts the root cgroup, and so a policy for all programs of this machine
    #[arg(long)]
    pub(crate) whole_machine: bool,
    /// Prints JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Removes the policy of a cgroup; its sockets keep their settings
///
/// Prints a line for each policy. With --all, ka also removes the empty cgroups of ka run --via cgroup that are left
/// because ka was killed.
#[derive(Args, Debug)]
#[command(
    group = ArgGroup::new("which").required(true).args(["cgroup", "all"]),
    after_help = "Examples:
  sudo ka cgroup detach system.slice/nginx.service
  sudo ka cgroup detach --all

Status: 1 if the cgroup has no policy of its own.

Needs CAP_BPF and CAP_NET_ADMIN.")]
pub(crate) struct CgroupDetach {
    /// The cgroup: its folder, or its name as in /proc/PID/cgroup
    #[arg(value_name = "CGROUP")]
    pub(crate) cgroup: Option<OsString>,
    /// All cgroups that have a policy of ka cgroup attach, and the remains of removed ones
    #[arg(short, long)]
    pub(crate) all: bool,
}

/// Lists the cgroups that have a policy in force, according to the kernel
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  sudo ka cgroup ls
  sudo ka cgroup ls --json system.slice

Status: 1 if some cgroups could not be examined; standard error names them, with the reason.

Needs CAP_NET_ADMIN and CAP_SYS_ADMIN; with CAP_BPF alone, ka shows root only the policies that ka cgroup attach has pinned.")]
pub(crate) struct CgroupLs {
    /// Only this cgroup, those below it, and the policies of cgroups above that are in force in it
    #[arg(value_name = "CGROUP")]
    pub(crate) cgroup: Option<OsString>,
    /// Prints JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Prints completions for a shell
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  ka completions bash >/usr/share/bash-completion/completions/ka
  ka completions zsh >/usr/share/zsh/vendor-completions/_ka
  ka completions fish >/usr/share/fish/vendor_completions.d/ka.fish")]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_parser = clap::builder::EnumValueParser::<Shell>::new())]
    pub(crate) shell: Shell,
}

/// Parses the name of a state.
fn state() -> impl TypedValueParser<Value = State> {
    let values = State::ALL.map(|state| {
        let value = PossibleValue::new(state.name());
        if state == State::Listen { value.alias("listening") } else { value }
    });
    let named = |name: &str| State::ALL.into_iter().find(|state| state.name() == name);
    // The alias is the only other name.
    PossibleValuesParser::new(values).map(move |name| named(&name).unwrap_or(State::Listen))
}

fn port(text: &str) -> Result<u16, String> {
    text.parse().ok().filter(|port| *port > 0).ok_or_else(|| "a port is a number, 1..65535".to_owned())
}

fn connections(text: &str) -> Result<u64, String> {
    text.parse().ok().filter(|count| *count > 0).ok_or_else(|| "it must be a number, 1 or more".to_owned())
}

/// Reads the words of a command line. The first word is the command's own name.
pub(crate) fn parse(words: Vec<OsString>) -> Result<Ka, clap::Error> {
    let mut command = lay_out(Ka::command());
    let matches = command.try_get_matches_from_mut(words)?;
    Ka::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

/// Lays out the text below the options: clap wraps the paragraphs at the terminal's width. It leaves the examples as
/// they are, because a broken command cannot be copied.
fn lay_out(command: clap::Command) -> clap::Command {
    let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let (examples, rest): (Vec<_>, Vec<_>) =
        text.split("\n\n").partition(|paragraph| paragraph.starts_with("Examples:"));
    let rest: Vec<_> = rest.iter().map(|paragraph| paragraph.replace('\n', " ")).collect();
    let examples: Vec<_> = examples.iter().flat_map(|example| ["\n\n", example]).collect();
    let examples = examples.concat();
    command
        .help_template(format!(
            "{{before-help}}{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{{all-args}}{examples}{{after-help}}"
        ))
        .after_help(rest.join("\n\n"))
        .mut_subcommands(lay_out)
}

/// Parses a PID.
pub(crate) fn pid(text: &str) -> Result<i32, String> {
    let pid = text.parse().ok().filter(|pid| *pid > 0);
    pid.ok_or_else(|| "a process is a number, as 1234 (pidof NAME finds it)".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_definition_is_sound() {
        super::Ka::command().debug_assert();
    }

    /// Terminals have 80 columns or more.
    #[test]
    fn examples_fit_into_a_terminal() {
        fn check(command: &clap::Command) {
            let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            for line in text.split("\n\n").filter(|part| part.starts_with("Examples:")).flat_map(str::lines) {
                assert!(line.chars().count() < 80, "{line}");
            }
            command.get_subcommands().for_each(check);
        }
        check(&super::Ka::command());
    }
}
