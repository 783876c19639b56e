//! The definition of the command line. The parser, --help, the completions and the manual pages are made from it.

use std::ffi::OsString;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{ArgGroup, ArgMatches, Args, CommandFactory as _, FromArgMatches, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use ka_core::{Config, RtoMax};
use ka_policy::Mode;

use crate::duration;
use crate::measure;
use crate::policy_flags::{self, PolicyFlags, on_only};
use ka_reach::diag::State;

/// Turn on and tune TCP keepalive for programs, running processes, cgroups, and the whole machine
///
/// On Linux, TCP keepalive is off by default. If a program turns it on, the kernel sends the first probe after two
/// hours. ka gives each TCP socket a policy instead. A policy is the idle time before the first probe, the time between
/// probes, and the number of unanswered probes after which the connection is dead.
#[derive(Debug, Parser)]
#[command(
    name = "ka",
    bin_name = "ka",
    version,
    arg_required_else_help = true,
    after_help = "Examples:
  ka run -- psql -h db.example.net         start a program with 60,10,6
  ka run -d 280 -i 30 -c 5 -- ./server     choose your own policy
  ka attach -p 280,30,5 1234               change a running process
  ka ls --off                              list sockets without keepalive
  ka ping 1234                             find out which connections are alive
  ka plan --preset aws-nlb                 compute values for a load balancer

Status: 0: success. 1: ls --off found a socket without keepalive, ping found a silent or dead connection, check found a \
problem, measure has no result for the path, or ls, attach or cgroup could not handle all sockets. 2: the arguments are \
wrong, or ka failed before it changed anything. 3: ls --off found no socket without keepalive, but could not read some \
sockets, or ping found no silent or dead connection, but skipped some. ka run returns the status of the program."
)]
pub(crate) struct Ka {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Defines the subcommands, as `derive(Subcommand)` does, but can also define only one of them. To define all takes
/// longer than the rest of the start of `ka run`.
macro_rules! subcommands {
    ($($name:literal $variant:ident($args:ident),)*) => {
        #[derive(Debug)]
        pub(crate) enum Command {
            $($variant($args),)*
        }

        impl Command {
            /// Defines the subcommand with this name.
            fn define(name: &str) -> Option<clap::Command> {
                match name {
                    $($name => Some($args::augment_args(clap::Command::new($name))),)*
                    _ => None,
                }
            }
        }

        impl FromArgMatches for Command {
            fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
                match matches.subcommand() {
                    $(Some(($name, matches)) => $args::from_arg_matches(matches).map(Self::$variant),)*
                    _ => Err(clap::Error::new(ErrorKind::MissingSubcommand)),
                }
            }

            fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
                *self = Self::from_arg_matches(matches)?;
                Ok(())
            }
        }

        impl Subcommand for Command {
            fn augment_subcommands(command: clap::Command) -> clap::Command {
                command
                    .subcommand_required(true)
                    .arg_required_else_help(true)
                    .subcommands([$($name),*].into_iter().filter_map(Self::define))
            }

            fn augment_subcommands_for_update(command: clap::Command) -> clap::Command {
                Self::augment_subcommands(command)
            }

            fn has_subcommand(name: &str) -> bool {
                [$($name),*].contains(&name)
            }
        }
    };
}

subcommands! {
    "run" Run(RunArgs),
    "attach" Attach(AttachArgs),
    "ls" Ls(LsArgs),
    "ping" Ping(PingArgs),
    "top" Top(TopArgs),
    "watch" Watch(WatchArgs),
    "check" Check(CheckArgs),
    "measure" Measure(MeasureArgs),
    "plan" Plan(PlanArgs),
    "defaults" Defaults(DefaultsArgs),
    "cgroup" Cgroup(CgroupArgs),
    "completions" Completions(CompletionsArgs),
}

/// Run a program with keepalive on all its TCP sockets
///
/// Via preload, ka becomes the program: the PID, signals, terminal and exit status are the program's own. Via seccomp,
/// ka stays as the program's supervisor. The program then has another PID, and ka forwards signals, job control and the
/// exit status. ka uses seccomp if preload does not reach the program. If libka_preload.so is missing, ka also uses
/// seccomp, and prints a message.
///
/// Preload does not reach static programs, Go programs, programs linked to a library made by Go, programs that make
/// their system calls themselves, and programs of C libraries other than glibc and musl. ka recognizes these by their
/// files.
///
/// Some wrappers remove or replace LD_PRELOAD, or change the root directory, before they start a program. Preload does
/// not reach such a program. ka knows these wrappers by name, even if nice, timeout, env or a similar program starts
/// them: sudo, sudoedit, doas, pkexec, run0, login; su and runuser with -, -l or --login; newgrp with - or -l; env with
/// -i, -u LD_PRELOAD or LD_PRELOAD=; setpriv with --reset-env; mptcpize; chroot, arch-chroot, bwrap, flatpak,
/// systemd-nspawn, firejail, schroot, proot, nsjail, runc, crun, lxc-attach, lxc-execute, lxc-start; unshare with
/// --root; nsenter with --mount, --root or --all; chpst with -/; start-stop-daemon with --chroot. ka does not read the
/// commands in scripts, and cannot know that a program starts its children with an empty environment. Use --via seccomp
/// for these. Without CAP_SYS_ADMIN, ka does not run setuid programs such as sudo, because under the seccomp filter
/// they would not gain their rights. Use sudo ka run.
///
/// Via seccomp, the supervisor makes system calls on the sockets of the program, and such a call can block. After 2 s,
/// the supervisor lets the program's own call continue, and names the process on standard error. The socket may then
/// lack the policy.
///
/// Each value of the policy comes from the first source that names it. The sources are the flags, the KA_ variables,
/// /etc/ka.conf, and the default 60,10,6. The mode follows the same order, and its default is force. If -p or KA_POLICY
/// gives a whole policy, the values that it lacks come from the default, not from later sources.
///
/// If ka cannot reach the program, ka refuses to start it.
#[derive(Args, Debug)]
#[command(
    mut_arg("whole", on_only),
    after_help = "Examples:
  ka run -- psql -h db.example.net
  ka run -v -p 280,30,5 --mode floor -- ./server --port 8080
  sudo ka run -d 5m -- nginx
  ka run --via seccomp -- ./test.sh      also static and Go children
  sudo ka run -- sudo -u app ./server    uses seccomp: sudo drops LD_PRELOAD

Policy text: A policy has one of two forms. The first form is three values, idle, intvl and cnt, separated by commas \
or colons, such as 60,10,6 or 1m:10s:6. The second form is a list of items, separated by commas, in any order and each \
at most once: idle=TIME, intvl=TIME, cnt=N, user_timeout=TIME, rto_max=TIME, and on or off. Blanks around values and \
items are ignored. A time is a number with a unit: ms, s, m, h or d. Without a unit, idle and intvl are seconds, and \
user_timeout and rto_max are milliseconds. A user timeout below 1000 needs a unit. idle and intvl must be whole \
seconds. user_timeout=none is 0, and user_timeout=auto is 1000 * (idle + intvl * cnt) ms. The flags, the KA_ variables \
and /etc/ka.conf take the same values.

Unacknowledged data: While sent data is unacknowledged, the kernel sends no keepalive probes. It then detects a dead \
peer only when it stops retransmitting, by default after about 15 minutes. rto_max is the longest time between two \
retransmissions, 1000 to 120000 ms. With rto_max=2s, the kernel stops after 27 s. rto_max=auto is the largest value \
with which it stops within idle + intvl * cnt, or 1000 ms if no value is small enough. In the modes force and floor, \
the program may lower rto_max, but not raise it above the policy. Unlike a user timeout, rto_max has no effect on an \
idle connection, and does not end a connection to a peer that only reads slowly. rto_max needs Linux 6.15. On an older \
kernel, ka prints a message. There, and for a Multipath TCP socket, ka applies the rest of the policy.

Status: the status of the program. 127: no such program. 126: not executable. 125: ka could not run the program under \
the policy.

Environment: KA_PRELOAD is the path of the libka_preload.so to use. Under sudo, doas or pkexec, root must own the file \
and all directories of its path, and no other user may be able to write them. The other KA_ variables are in \
ka-preload(7). If a variable looks like a misspelled KA_ variable, ka prints a message, unless KA_QUIET is 1."
)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) policy: PolicyFlags,
    /// Choose whether the program may override the policy
    #[arg(long, value_parser = policy_flags::mode(), help_heading = "Policy")]
    pub(crate) mode: Option<Mode>,
    /// Choose how ka reaches the program
    #[arg(long, value_enum, default_value_t = Via::Auto, value_name = "WAY")]
    pub(crate) via: Via,
    /// Print a warning and run the program anyway if ka cannot reach it
    #[arg(long)]
    pub(crate) best_effort: bool,
    /// Deny the program io_uring, which bypasses the supervisor: io_uring_setup fails with ENOSYS. Only via seccomp
    #[arg(long)]
    pub(crate) no_io_uring: bool,
    /// Print on standard error how ka reaches the program, why ka rejected other ways, and whether the program may hand
    /// its work to a server that ka does not reach
    #[arg(short, long)]
    pub(crate) verbose: bool,
    /// The program to run, and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "PROGRAM")]
    pub(crate) program: Vec<OsString>,
}

/// A way to reach a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Via {
    /// The first way that reaches the program
    Auto,
    /// LD_PRELOAD: reaches programs that the dynamic loader starts
    Preload,
    /// A supervisor with seccomp(2): reaches all programs, also static and Go programs, and their children
    Seccomp,
    /// A new cgroup, in which eBPF programs set the sockets: reaches all programs and their children. auto never
    /// selects it. Needs CAP_BPF, CAP_NET_ADMIN and cgroup v2
    Cgroup,
}

/// Set keepalive on the TCP sockets of running processes
///
/// ka does not stop the processes. ka duplicates each socket of a process, sets the duplicate, and closes it. ka also
/// sets listeners: the connections that they accept inherit the policy.
///
/// The mode and each value of the policy come from the flags, the KA_ variables, /etc/ka.conf, or the defaults 60,10,6
/// and force, in this order: see ka-run(1). ka attach ignores KA_RULES. With --all and --user, ka skips the programs
/// that KA_SKIP names. A process may already have another policy of ka, from ka run, libka_preload.so or its cgroup. ka
/// prints that policy, because sockets that the process opens later get it.
#[derive(Args, Debug)]
#[command(
    group = ArgGroup::new("whose").required(true).args(["pids", "all", "user", "undo"]),
    after_help = "Examples:
  ka attach 1234                    set 60,10,6 for one process
  ka attach -p 280,30,5 $(pidof nginx)
  sudo ka attach --all --port 5432 --mode floor
  ka attach --follow 1234           also set sockets that it opens later
  sudo ka attach --all --dry-run    print what would change
  ka attach --json -p 280,30,5 1234 >before.json
  ka attach --undo before.json      restore the earlier settings
  sudo ka attach --all --via bpf    all of this network namespace

Status: 1 if ka could not set a socket or a process, or if with --spread a signal came before ka had set all sockets.

JSON keys: An object. With --follow, ka prints one line per socket instead, each with an object as in sockets. \
sockets[].pid is the key pid of each object in the array sockets.
  set: integer, sockets. How many sockets ka set. With --dry-run: how many it would set.
  unchanged: integer, sockets. How many sockets needed no change.
  failed: integer, sockets and processes. How many sockets ka could not set, and processes it could not examine.
  without_user_timeout: integer, sockets. How many sockets cannot have the user timeout of the policy.
  without_rto_max: integer, sockets. How many sockets cannot have the rto_max of the policy.
  dry_run: boolean. Whether --dry-run is given.
  policy: string. The policy, as a text that --policy takes. null: with --undo.
  mode: string. One of force, floor, default. null: with --undo.
  not_found: integer, sockets. With --undo: how many sockets of FILE are closed, or belong to a process that has ended.
  denied: integer, processes. With --all and --user: the number of processes that ka has no right to examine.
  skipped: integer, processes. With --all and --user: how many processes KA_SKIP names.
  sockets_left: integer, sockets. How many sockets ka had not set when a signal came.
  processes_left: integer, processes. How many processes ka had not examined when a signal came.
  others: array of objects. The other policies of ka that apply to the processes.
  others[].pid: integer. The process.
  others[].way: string. The way the process got the policy. One of preload, seccomp, cgroup.
  others[].of: string. Via seccomp, the PID of the supervisor. Via cgroup, the name of the cgroup. null: via preload.
  others[].policy: string. The policy, as a text that --policy takes.
  others[].mode: string. One of force, floor, default.
  others[].rules: integer, rules. How many rules KA_RULES has for the process.
  sockets: array of objects. The sockets, and the processes that ka could not examine.
  sockets[].pid: integer. A process that has the socket. null: no process has it, or ka has no right to find it.
  sockets[].fd: integer. The descriptor of the socket in that process. null: the object is about the whole process, or \
  pid is null.
  sockets[].inode: integer. The inode number of the socket. null: unknown.
  sockets[].comm: string. The name of the process. null: unknown.
  sockets[].local: string. Local address and port. null: unknown.
  sockets[].peer: string. Address and port of the peer. null: not connected, or unknown.
  sockets[].result: string. One of set, would-set, unchanged, failed, denied. would-set: on a dry run. denied: with \
  --all and --user, ka has no right to examine the process.
  sockets[].before: object. The settings before ka set the socket. null: unknown.
  sockets[].before.keepalive: boolean. Whether keepalive was on.
  sockets[].before.idle: integer, seconds. TCP_KEEPIDLE.
  sockets[].before.intvl: integer, seconds. TCP_KEEPINTVL.
  sockets[].before.cnt: integer, probes. TCP_KEEPCNT.
  sockets[].before.user_timeout_ms: integer, milliseconds. TCP_USER_TIMEOUT, 0 if it is not set. null: the socket does \
  not support it (Multipath TCP).
  sockets[].before.rto_max_ms: integer, milliseconds. TCP_RTO_MAX_MS. null: the socket does not support it (Linux before \
  6.15, or Multipath TCP).
  sockets[].after: object. The settings after that. On a dry run: the settings that ka would make. null: unknown.
  sockets[].after.keepalive: boolean. Whether keepalive is on.
  sockets[].after.idle: integer, seconds. TCP_KEEPIDLE.
  sockets[].after.intvl: integer, seconds. TCP_KEEPINTVL.
  sockets[].after.cnt: integer, probes. TCP_KEEPCNT.
  sockets[].after.user_timeout_ms: integer, milliseconds. As in before. null: as in before.
  sockets[].after.rto_max_ms: integer, milliseconds. As in before. null: as in before.
  sockets[].error: string. The reason for a failure. null: no failure.
  sockets[].note: string. Why the socket lacks a part of the policy. null: it lacks nothing.

A program can hold the lock of its socket for as long as it likes. If a socket does not answer within 2 s, ka names \
it, leaves it unchanged, and continues with the other sockets. After 8 such sockets of one user, ka skips all other \
sockets that this user made.

To set a process of another user, or a process that is not dumpable, ka needs CAP_SYS_PTRACE (run ka as root). If \
Yama's kernel.yama.ptrace_scope is 1 or more (Ubuntu's default is 1), ka needs it for your own processes too.

Sockets that ka sets at the same time send their probes at the same time from then on. If a socket had keepalive on \
and has been silent for longer than the new idle time, the kernel sends a probe at once. For ten thousand such \
sockets, it sends ten thousand packets of 52 bytes. To avoid such a burst, use --spread."
)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag")]
pub(crate) struct AttachArgs {
    #[command(flatten)]
    pub(crate) policy: PolicyFlags,
    /// Choose whether sockets may keep the settings of their program. Default: KA_MODE, or force
    #[arg(long, value_parser = policy_flags::mode(), help_heading = "Policy")]
    pub(crate) mode: Option<Mode>,
    /// The processes, by PID
    #[arg(value_name = "PID", value_parser = pid)]
    pub(crate) pids: Vec<i32>,
    /// Set the sockets of all processes
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Set the sockets of all processes of a user, by name or user ID
    #[arg(long, value_name = "USER")]
    pub(crate) user: Option<OsString>,
    /// Restore the settings that the sockets had before an earlier ka attach --json. FILE holds the output of that
    /// command
    #[arg(long, value_name = "FILE",
          conflicts_with_all = [
              "idle", "intvl", "cnt", "user_timeout", "rto_max", "whole", "mode", "via", "port", "follow",
          ])]
    pub(crate) undo: Option<PathBuf>,
    /// Choose how ka reaches the sockets
    #[arg(long, value_enum, default_value_t = AttachVia::Pidfd, value_name = "WAY")]
    pub(crate) via: AttachVia,
    /// Set only sockets whose local or peer port is this one
    #[arg(long, value_parser = port)]
    pub(crate) port: Option<u16>,
    /// Continue until the processes end or SIGINT or SIGTERM comes, and set sockets that are opened later
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// The time between two passes of --follow
    #[arg(long, value_name = "S", default_value = "1s", value_parser = duration::fine_seconds, requires = "follow")]
    pub(crate) interval: u32,
    /// Spread the work over this time, so that many sockets do not send their probes at once
    #[arg(long, value_name = "S", value_parser = duration::fine_seconds)]
    pub(crate) spread: Option<u32>,
    /// Set a socket even if it then loses its net_cls or net_prio class (cgroup v1)
    #[arg(long)]
    pub(crate) lose_class: bool,
    /// Set nothing, and print what ka would set
    #[arg(short = 'n', long)]
    pub(crate) dry_run: bool,
    /// Print one line per socket
    #[arg(short, long)]
    pub(crate) verbose: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// A way to reach open sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AttachVia {
    /// Through the processes that have the sockets open
    Pidfd,
    /// Through an eBPF iterator: sets all sockets of this network namespace in one pass, also connections that no
    /// process has accepted yet. Needs --all, CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN, and Linux 6.1
    Bpf,
}

/// List TCP sockets with their processes and keepalive settings
///
/// The list shows whether keepalive is on, its timers, when the next probe is due, and how many probes had no answer.
/// If ka has no right to read a socket, it prints the values in the kernel's list of sockets, and ? for the rest. Run
/// ka as root to see all.
///
/// Without --netns and --all-netns, ka lists only the network namespace that it runs in. A container usually has its
/// own. With PIDs, ka lists the network namespaces that these processes are in. If such a process also has sockets of
/// other namespaces, only --all-netns finds them.
///
/// Columns: PROCESS is the process with the lowest PID that has the socket; nginx/812+3 means that 3 more processes
/// share it. KEEP: whether keepalive is on. IDLE, INTVL and CNT: the timers in force. TIMEOUT: TCP_USER_TIMEOUT, or -
/// if it is not set. RTO_MAX: TCP_RTO_MAX_MS, or - if it is 120000 ms or the kernel does not report it. NEXT: the time
/// until the next probe, if the connection stays silent. LOST: how many probes in a row had no answer. RISK: the
/// problems of the settings or of the connection. NETNS: the network namespace, by its ip-netns(8) name or by the
/// lowest PID in it. --netns accepts both. ka prints this column with --all-netns, and if the PIDs are in several
/// network namespaces.
///
/// Risks: "off": keepalive is off. "slow": the first probe comes after more than 350 s. AWS load balancers and NAT
/// gateways forget the connection before that. "suspended": the peer has not acknowledged data, and the kernel sends no
/// keepalive probe until it does. "user-timeout": TCP_USER_TIMEOUT ends a silent connection earlier or later than cnt
/// would. "unanswered": at least half of cnt probes in a row had no answer, so the peer is probably gone.
///
/// On a terminal, ka fits the table to the terminal's width. It first omits columns without values, then RTO_MAX,
/// TIMEOUT, FD, STATE, INTVL, CNT, NEXT, LOST and IDLE, in this order, until the rest fits, and shortens long addresses
/// and names in the middle. If standard output is not a terminal, as in ka ls | less, ka prints everything.
///
/// The kernel's list does not contain sockets that neither listen nor have begun to connect. ka check PID counts these
/// sockets, and ka attach sets them.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  ka ls                            list this network namespace
  ka ls 1234 5678                  list the sockets of two processes
  sudo ka ls --state established --port 5432
  sudo ka ls --all-netns --risk    list problems, also in containers
  ka ls --off --state established 1234 || echo 'not all have keepalive'
  sudo ka ls --netns blue --json

Status: With --off: 0 if keepalive is on for all sockets, 1 if it is off for some, 3 if it is off for no socket but \
unknown for some. Without --off: 1 if ka could not read a process that you asked for or a network namespace, or \
if a socket did not answer within 2 s because a program holds its lock. ka prints the reason on standard error. 2 if \
ka could list nothing.

JSON keys: An array with an object per socket.
  netns: string. The network namespace, as in the column NETNS. null: ka lists only the network namespace that \
  it runs in, and neither --netns nor --all-netns is given.
  pid: integer. The process with the lowest PID that has the socket. null: no process has it, or ka has no right to \
  find it.
  fd: integer. The lowest descriptor of the socket in that process. null: as for pid.
  comm: string. The name of that process. null: as for pid, or ka cannot read the name.
  others: array of integers. PIDs of the other processes that have the socket. With PID arguments, only those of the \
  given processes.
  local: string. Local address and port.
  peer: string. Address and port of the peer. null: not connected.
  state: string. A name that --state takes.
  keepalive: boolean. Whether keepalive is on. null: unknown.
  idle: integer, seconds. TCP_KEEPIDLE. null: unknown.
  intvl: integer, seconds. TCP_KEEPINTVL. null: unknown.
  cnt: integer, probes. TCP_KEEPCNT. null: unknown.
  user_timeout_ms: integer, milliseconds. TCP_USER_TIMEOUT, 0 if it is not set. null: unknown.
  rto_max_ms: integer, milliseconds. TCP_RTO_MAX_MS, the longest time between two retransmissions. null: unknown, or \
  the kernel does not report it (before Linux 6.15, and for some Multipath TCP sockets).
  next_probe_ms: integer, milliseconds. Time until the next probe, if the connection stays silent. null: no probe is \
  due, or the time is unknown.
  unanswered_probes: integer, probes. How many probes in a row had no answer. null: unknown.
  risks: array of strings. Names of the risks above. Empty: no risk.
  error: string. The reason why ka could not read the socket. null: no error.")]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag")]
pub(crate) struct LsArgs {
    /// List only the sockets of these processes, by PID
    #[arg(value_name = "PID", value_parser = pid)]
    pub(crate) pids: Vec<i32>,
    /// List only the sockets of this process, the same as PID without --pid. Repeatable
    #[arg(long, value_parser = pid)]
    pub(crate) pid: Vec<i32>,
    /// List only sockets in this state. Repeatable. Default: all except time-wait and syn-recv, which have no socket
    /// options. The kernel does not list sockets in state close
    #[arg(long, value_parser = state(), value_name = "STATE", value_delimiter = ',')]
    pub(crate) state: Vec<State>,
    /// List only sockets whose local or peer port is this one
    #[arg(long, value_parser = port)]
    pub(crate) port: Option<u16>,
    /// List only sockets whose keepalive is off or unknown. Status 1 if it is off for some, 3 if it is only unknown for
    /// some
    #[arg(long)]
    pub(crate) off: bool,
    /// List only sockets with a risk
    #[arg(long)]
    pub(crate) risk: bool,
    /// List this network namespace: an ip-netns(8) name, a path, or a PID. Needs CAP_SYS_ADMIN
    #[arg(long, value_name = "NS")]
    pub(crate) netns: Option<OsString>,
    /// List all network namespaces that contain processes. Needs CAP_SYS_ADMIN
    #[arg(long, conflicts_with = "netns")]
    pub(crate) all_netns: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Show which TCP connections are alive now
///
/// ka makes the kernel send keepalive probes, which carry no data, and waits for the answers. The program is not
/// stopped and notices nothing. All connections are probed at the same time. The settings of the sockets are the same
/// afterwards.
///
/// Columns: PROCESS is the process with the lowest PID that has the socket; nginx/812+3 means that 3 more processes
/// share it. RESULT: one of the results below. RTT: the time from the first probe to the answer. If the peer had sent
/// something within the last second, ka sends no probe, and RTT is the round-trip time that the kernel has measured
/// earlier. NOTE: the reason for the result.
///
/// Results: "answered": the peer answered. "silent": the peer left all probes unanswered for the whole timeout. If data
/// is in flight, the kernel retransmits it instead of sending probes, and an acknowledgement is the answer. "dead": the
/// connection has ended with an error, for example because the peer answered with a reset. The kernel gives the exact
/// error only to the program, so NOTE can differ from it: after --destroy or ss -K, NOTE is the text of ECONNRESET, and
/// the program gets ECONNABORTED. "skipped": ka has no result, for the reason in NOTE. An answer proves that the peer's
/// kernel or a proxy in front of it is alive, not that the peer's program works.
///
/// ka skips a connection in state close-wait: the peer has closed it, and the program has not closed its side, so the
/// program leaks the socket. ka leaves out listeners and sockets that were never connected.
#[derive(Args, Debug)]
#[command(
    group = ArgGroup::new("whose").required(true).multiple(true).args(["pids", "pid", "all", "user"]),
    after_help = "Examples:
  ka ping 1234                     check the connections of a process
  ka ping --timeout 500ms --count 2 $(pidof nginx)
  sudo ka ping --all --port 5432   check all connections to databases
  sudo ka ping --all --destroy --dry-run
  ka ping --json 1234 | jq '.[] | select(.result != \"answered\")'

Status: 0 if all connections answered, or there is none. 1 if any is silent or dead, also if ka destroyed it. 3 if \
none is silent or dead, but ka skipped some, or could not examine a process. 2 if the arguments are wrong, a process \
does not exist, ka has no right to examine any of the processes, or ka cannot destroy connections here.

JSON keys: An array with an object per connection, and one per process that ka could not examine.
  pid: integer. The process in which ka found the socket.
  fd: integer. The descriptor of the socket in that process. null: the object is about the whole process.
  comm: string. The name of the process. null: ka cannot read the name.
  local: string. Local address and port. null: unknown.
  peer: string. Address and port of the peer. null: the connection has ended, or unknown.
  result: string. One of answered, silent, dead, skipped.
  rtt_ms: number, milliseconds. As in the column RTT. null: the peer did not answer.
  error: string. As in the column NOTE. With --destroy, the error of a silent connection begins with \"destroyed: \", \
  \"would be destroyed: \" or \"not destroyed: \". null: the result needs no explanation.

With --destroy, ka ends the connections that left all probes unanswered (SOCK_DESTROY, sock_diag(7)). Right before it \
ends a connection, ka checks again that no segment of the peer has arrived. The next read or write of the program \
fails with ECONNABORTED, and the kernel sends the peer a reset. ka never ends a connection that is not silent. While \
data is in flight, ka counts retransmissions instead of probes, so it may need a longer --timeout. It cannot end \
Multipath TCP connections. It needs CAP_NET_ADMIN in the user namespace that owns the network namespace of the socket, \
CAP_SYS_ADMIN if this is not ka's own network namespace, and CONFIG_INET_DIAG_DESTROY. ka checks these before it \
probes.

Unanswered probes stay in the kernel's count of unanswered probes until the peer sends something. So if keepalive is \
on and the peer stays silent, keepalive ends the connection up to --count probes earlier, but not before the idle time \
is over. If cnt is at most --count, or the user timeout is at most the idle time, the connection ends when the idle \
time is over, without another probe.

While a probe leaves, for some milliseconds, the socket has keepalive on, TCP_KEEPIDLE 1 and TCP_USER_TIMEOUT \
2147483646. If a signal ends ka, even SIGKILL, a second process of ka puts the settings back. The changed settings \
stay only if SIGKILL ends that process too. The kernel then sends a probe each second, or ka ping skips the socket. To \
repair the socket, run ka attach -p idle=60,intvl=10,cnt=6,user_timeout=none PID.

If the idle time of a socket followed net.ipv4.tcp_keepalive_time, it is fixed at that value afterwards.

A program can hold the lock of its socket forever. If a call on a socket does not return within 2 s, ka skips the \
socket. If its settings are changed at that moment, a process of ka stays behind, and puts the settings back when the \
lock is released.

To probe connections of another user's process, or of a process that is not dumpable, ka needs CAP_SYS_PTRACE (run ka as \
root). See ka-attach(1)."
)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag")]
pub(crate) struct PingArgs {
    /// The processes, by PID
    #[arg(value_name = "PID", value_parser = pid)]
    pub(crate) pids: Vec<i32>,
    /// Probe the connections of this process, the same as PID without --pid. Repeatable
    #[arg(long, value_parser = pid)]
    pub(crate) pid: Vec<i32>,
    /// Probe the connections of all processes
    #[arg(short, long, conflicts_with_all = ["pids", "pid", "user"])]
    pub(crate) all: bool,
    /// Probe the connections of all processes of a user, by name or user ID
    #[arg(long, value_name = "USER", conflicts_with_all = ["pids", "pid"])]
    pub(crate) user: Option<OsString>,
    /// Probe only connections whose local or peer port is this one
    #[arg(long, value_parser = port, allow_negative_numbers = true)]
    pub(crate) port: Option<u16>,
    /// The time in which the peer of a connection must answer
    #[arg(long, value_name = "S", default_value = "2s", value_parser = duration::fine_seconds,
          allow_negative_numbers = true)]
    pub(crate) timeout: u32,
    /// The number of probes to a silent peer, spread evenly over the timeout: 1 to 100
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = probes, allow_negative_numbers = true)]
    pub(crate) count: u32,
    /// End the connections that stay silent
    #[arg(long)]
    pub(crate) destroy: bool,
    /// Print which connections --destroy would end, and end none
    #[arg(short = 'n', long, requires = "destroy")]
    pub(crate) dry_run: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Show TCP sockets and their keepalive in a live view on the terminal
///
/// The view has the columns of ka ls, and refreshes them each second. Sockets that need attention come first: those
/// with unanswered probes, then those without keepalive, then those with another risk. See ka-ls(1) for the columns and
/// the risks. Below, the view lists the connections that ended abnormally since its start, as ka watch does.
///
/// Keys: Up, Down, Page Up, Page Down, Home and End, or k, j, b, f, g and G, select a socket. The selection stays on
/// this socket. "s" and "S" choose the column to sort by, and "R" reverses the order. "/" filters the list by a text.
/// "r" shows only sockets with a risk. Esc shows all sockets again. Space pauses and continues. "p" probes the selected
/// connection, as ka ping does, and shows the result in its row. "a" applies the policy to the selected socket. "?"
/// shows the keys. Ctrl-L draws the screen again, Ctrl-Z stops ka, and "q" and Ctrl-C quit.
///
/// The text of "/" is one or more words, and a socket must match all of them. A number matches a port or a PID. Another
/// word matches a part of the process, the state, an address or a risk. "on", "off" and "unknown" match the keepalive.
///
/// The key "a" first shows the policy, and the ka attach command that applies the same policy. ka changes the socket
/// only if the user then presses "y". The mode and each value of the policy come from the flags, the KA_ variables,
/// /etc/ka.conf, or the defaults 60,10,6 and force, in this order: see ka-run(1).
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  ka top                           show this network namespace
  ka top 1234 5678                 show the sockets of two processes
  sudo ka top --port 5432 --interval 5s
  sudo ka top -p 280,30,5          let the key \"a\" apply 280,30,5

Status: 0 if the user quits the view, or SIGINT, SIGTERM, SIGQUIT or SIGHUP ends it. 2 if standard input or output is \
not a terminal, or ka could not show the view.

Environment: If NO_COLOR is set and not empty, the view has no colours. If the locale (LC_ALL, LC_CTYPE, LANG) does \
not use UTF-8, the view is in ASCII.

The view needs 60 columns and 8 lines, and 14 lines to list the connections that ended. If ka lacks rights, a message \
in the view names the missing rights. Run ka as root to see everything.

A separate program, ka-top, draws the view, so that the other commands stay small. It is installed with \
libka_preload.so. If it is missing, ka top prints the paths at which it looked.")]
pub(crate) struct TopArgs {
    #[command(flatten)]
    pub(crate) policy: PolicyFlags,
    /// Choose whether the socket may keep the settings of its program. Default: KA_MODE, or force
    #[arg(long, value_parser = policy_flags::mode(), help_heading = "Policy")]
    pub(crate) mode: Option<Mode>,
    /// Show only the sockets of these processes, by PID
    #[arg(value_name = "PID", value_parser = pid)]
    pub(crate) pids: Vec<i32>,
    /// Show only sockets whose local or peer port is this one
    #[arg(long, value_parser = port)]
    pub(crate) port: Option<u16>,
    /// The time between two refreshes
    #[arg(long, value_name = "S", default_value = "1s", value_parser = duration::fine_seconds)]
    pub(crate) interval: u32,
}

/// Report each connection that ends abnormally, with its process and the cause
///
/// ka prints a line with a sentence when a connection is lost: because the peer no longer answered, because a reset
/// arrived, or because a program on this machine destroyed it. If a program closes its connection or exits, or if
/// connect(2) fails, ka prints nothing. ka runs until SIGINT or SIGTERM comes. With --pid, ka also ends when these
/// processes have ended.
///
/// Without --netns, ka watches its own network namespace, or with --pid the network namespaces of the processes.
///
/// Causes: "keepalive": as many keepalive probes as TCP_KEEPCNT were unanswered. "user-timeout": TCP_USER_TIMEOUT ended
/// the connection. Data was unacknowledged, or more or fewer probes than TCP_KEEPCNT were unanswered. "retransmission":
/// the peer did not acknowledge data until the kernel gave up (net.ipv4.tcp_retries2). "unreachable": the same as
/// "retransmission", and an ICMP error or a failed address resolution reported the peer as unreachable. "reset": a
/// reset arrived from the address of the peer. The peer, or a firewall or a load balancer on the way, has sent it.
/// "destroyed": a program on this machine ended the connection with SOCK_DESTROY, such as ss -K.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  sudo ka watch                    watch this network namespace
  sudo ka watch --netns all --json
  ka watch --pid 1234              watch one of your own processes
  sudo ka watch --port 5432 | logger -t ka
  sudo ka watch --netns all --metrics 9500

Status: 0 after SIGINT or SIGTERM, when the reader of the output has ended, and with --pid when the processes have \
ended. 2 if ka cannot watch, or can no longer serve the metrics.

JSON keys: One line per abnormal end, each with an object.
  time: string. The time of the end in UTC (RFC 3339). With --source diag and poll: the time at which ka noticed the \
  end.
  event: string. One of died.
  cause: string. One of keepalive, user-timeout, retransmission, reset, unreachable, destroyed.
  pid: integer. The process with the lowest PID that had the socket. null: ka could not find it before the process \
  closed the socket, or has no right to examine the process.
  comm: string. The name of that process. null: as for pid.
  local: string. Local address and port.
  peer: string. Address and port of the peer.
  keepalive: boolean. True if keepalive was on. null: unknown.
  idle: integer, seconds. TCP_KEEPIDLE. null: unknown.
  intvl: integer, seconds. TCP_KEEPINTVL. null: unknown.
  cnt: integer, probes. TCP_KEEPCNT. null: unknown.
  unanswered_probes: integer, probes. The number of probes in a row without an answer. null: unknown.
  silent_ms: integer, milliseconds. Time from the last packet of the peer to the end. A reset is not such a packet. \
  With --source diag and poll: to the time at which ka noticed the end. null: unknown.

JSON keys: If ka could not report some ends: one line with an object, at most once a second. ka prints the reason on \
standard error.
  time: string. The time at which ka noticed the missed ends, in UTC (RFC 3339).
  event: string. One of missed.
  count: integer, connections. The largest possible number of ends that ka could not report.

ka searches for the process of a connection while the connection is open. For this, ka lists the connections at \
intervals of 1 to 60 s. The more connections there are, the longer are the intervals, so that the lists take less than \
1 % of a core. If a connection ends before ka has found its process, ka searches at once. ka does not find a process \
that has already closed the socket, or that ka has no right to examine. With --pid, ka does not report a connection \
whose process it could not find. Each subflow of a Multipath TCP connection counts as a connection.

With --netns all, ka finds a new network namespace up to 30 s after its creation, or later if the intervals are long. \
Before that, --source ebpf already reports ends in the new namespace, some without their process. The other sources do \
not.

With --source ebpf, it can happen that the kernel does not record an end. If the program still has the socket, ka \
reports this end after the next two lists, with the time and the cause that --source poll reports. ka then prints a \
message on standard error. If the program has closed the socket, ka does not report the end.

--source ebpf needs CAP_BPF and CAP_PERFMON, and Linux 5.9 with CONFIG_DEBUG_INFO_BTF. The other sources need no \
capability. To know the processes of other users, ka needs CAP_SYS_PTRACE, and CAP_DAC_READ_SEARCH if it does not run \
as root. With --source diag and poll, ka reports the cause unreachable as retransmission, and destroyed as reset. With \
--source diag, it cannot always distinguish a reset from a program that closed its connection with data unread. With \
--source poll, it misses connections that their programs close before the next list.

With --metrics, ka serves metrics at http://ADDR:PORT/metrics, in the format OpenMetrics 1.0 if the client asks for \
it, and otherwise in the format of Prometheus, 0.0.4. ka_connections counts open connections, by keepalive: on, off, \
unknown. ka_connections_at_risk counts them by the risks of ka ls: off, slow, suspended, user-timeout, unanswered. \
ka_deaths_total counts the abnormal ends since the start of ka, by their causes. ka_missed_deaths_total counts the \
ends that ka could not report, by the reason: dropped, unclear. ka_keepalive_probes_total counts the keepalive probes \
that the kernel has sent in the watched network namespaces, of all connections. ka_last_list_timestamp_seconds, \
ka_last_list_duration_seconds and ka_incomplete_lists_total describe the lists of connections, and ka_build_info and \
ka_watch_info describe ka. --pid and --port also select the connections that ka counts. ka reads the settings of each \
connection again every 10 seconds, or more rarely if there are more than 1000. It finds the risks slow, user-timeout \
and unanswered only for processes that it has the right to examine. A separate program, ka-metrics, answers the \
requests, without privileges and without encryption. It serves at most 64 clients at a time. PORT 0 means a free port; \
ka prints the address on standard error.

If the service manager requests it (NOTIFY_SOCKET, WATCHDOG_USEC: sd_notify(3)), ka sends a message when it has started \
to watch, and watchdog messages afterwards.")]
pub(crate) struct WatchArgs {
    /// Report only connections of this process, by PID. Repeatable
    #[arg(long, value_parser = pid)]
    pub(crate) pid: Vec<i32>,
    /// Report only connections whose local or peer port is this one
    #[arg(long, value_parser = port)]
    pub(crate) port: Option<u16>,
    /// Watch this network namespace: an ip-netns(8) name, a path, or a PID. all: all namespaces that contain processes,
    /// also those that are created later. ka searches for new ones about every 30 s. Namespaces other than ka's own
    /// need CAP_SYS_ADMIN
    #[arg(long, value_name = "NS")]
    pub(crate) netns: Option<OsString>,
    /// The source of the ends. Default: the first source of this list that ka has the right to use
    #[arg(long, value_enum, value_name = "SOURCE")]
    pub(crate) source: Option<SourceFlag>,
    /// Serve metrics for Prometheus over HTTP at this address, path /metrics. PORT alone: only for programs on this
    /// machine, at 127.0.0.1
    #[arg(long, value_name = "ADDR:PORT", value_parser = crate::metrics::address)]
    pub(crate) metrics: Option<SocketAddr>,
    /// Print a JSON object per line
    #[arg(long)]
    pub(crate) json: bool,
}

/// A source of the ends of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SourceFlag {
    /// An eBPF program in the kernel: records each end at once, with the exact cause. Needs CAP_BPF and CAP_PERFMON,
    /// and Linux 5.9
    Ebpf,
    /// The kernel's reports of destroyed sockets, which come when the program has closed the socket, and repeated
    /// examinations of the sockets of your processes. Cannot distinguish all causes
    Diag,
    /// Only the repeated examinations. Misses a connection that its program closes at once
    Poll,
}

/// Explain how ka can reach a program or a process, and print the command to use
///
/// For a process, ka also prints the policies that apply to it: from libka_preload.so, from the supervisor of ka run
/// --via seccomp, and from its cgroups. If TCP sockets of the process have no keepalive in spite of such a policy, ka
/// lists them and the possible reasons. If ka lacks the rights to examine something, it prints unknown, and null in the
/// JSON.
///
/// Without a program or process, ka prints which ways you may use on this machine, and what the other ways need.
///
/// Unless KA_QUIET is 1, ka prints mistakes in the KA_ variables and in /etc/ka.conf on standard error.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  ka check
  ka check nginx
  ka check ./server
  ka check 1234

Status: For a program: 1 if ka run does not reach it, 127 if there is no such program, 126 if it is not executable. \
For a process: 1 if ka attach does not reach it or one of its sockets, or if some of its sockets lack keepalive \
although a policy of ka applies. Without an argument: 1 if a way is not available.

JSON keys: An object. ways[].way is the key way of each object in the array ways.
  target: string. The path of the program, or the PID and the name of the process, or \"this machine\".
  facts: array of strings. What ka found out about the target, in sentences for people. They can change with each \
  version of ka.
  ways: array of objects. The ways, those that reach the target first. Empty: the kernel cannot start the program, or \
  the process has no sockets, because it has ended or is a kernel thread.
  ways[].way: string. One of preload, seccomp, cgroup, attach, bpf. bpf: only for this machine.
  ways[].reaches: boolean. Whether the way reaches the target. For this machine: whether you may use the way. null: \
  unknown.
  ways[].why: string. The reason, in words for people.
  command: string. The command to use, or \"none: \" and the reason. null: for this machine.
  supervisor: integer. The PID of the supervisor of ka run --via seccomp. null: the process has none. Absent: for a \
  program and for this machine, and if ways is empty.
  cgroups: array of objects. The policies of the process's cgroup and of the cgroups above it, its own first. Empty: \
  no policy. null: unknown. Absent: as supervisor.
  cgroups[].cgroup: string. The name of the cgroup, as in /proc/PID/cgroup.
  cgroups[].policy: string. The policy, as a text that --policy takes.
  cgroups[].mode: string. One of force, default.")]
pub(crate) struct CheckArgs {
    /// A program, by name or path, or a process, by PID
    #[arg(value_name = "PROGRAM|PID")]
    pub(crate) target: Option<OsString>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Measure how long the path to a server may be idle
///
/// NATs, firewalls and load balancers forget idle connections. ka opens connections to the server, leaves each idle for
/// a different time, and then makes the kernel send keepalive probes. A connection survives an idle time if the server
/// still answers afterwards. ka prints the longest idle time that connections survive, and the policy for it. The
/// server needs no program of ka, because its kernel answers. ka needs no privileges.
///
/// The first connections try idle times from --from to --to, all at once. When an idle time fails, ka tries more
/// between the longest that survived and the shortest that failed, until these two are at most --precision apart. An
/// idle time counts as failed only if two connections failed. Packets may be lost, so ka sends up to 11 probes before
/// it calls a connection silent. If the path forgets after T, a measurement takes two to five times T.
///
/// Verdicts: "keeps": connections survived all idle times up to --to. "forgets": the path forgets a connection.
/// "forgets, silent": a NAT or a firewall drops the probes. "forgets, reset": a middlebox, or a server that was
/// restarted, answers with RST. If the reset came without a probe, it can also be an idle timeout of the server.
/// "server-closes": the server, or a proxy in front of it, closes idle connections. Keepalive does not prevent this.
/// The path itself keeps connections at least until then. The verdict is also "server-closes" if the server closes or
/// resets each connection within the first second. "unclear": the results contradict each other, the server sends
/// packets by itself, the server no longer accepts connections, or a signal ended the measurement.
///
/// A proxy that ends TCP answers the probes itself. ka then measures the path to the proxy. A NAT may forget a
/// connection, but accept the probe of the client as a new connection. Only a probe from the server finds such a NAT:
/// run ka measure --serve PORT on the server's machine, and ka measure --from-server HOST:PORT here.
///
/// If standard error is a terminal, ka shows the elapsed and the remaining time on it. Otherwise, ka prints one line
/// per connection on standard error.
#[derive(Args, Debug)]
#[command(
    group = ArgGroup::new("role").required(true).args(["server", "serve"]),
    after_help = "Examples:
  ka measure db.example.net:5432
  ka measure --from 60s --to 20m --precision 15s '[2001:db8::7]:22'
  ka measure --send 'HEAD / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n' www.example.net:80
  ka measure --serve 7007                 on the machine of the server
  ka measure --from-server server.example.net:7007

Status: 0: keeps or forgets. 1: server-closes or unclear. 2: the arguments are wrong, or ka cannot connect. With \
--serve: 0 after SIGINT or SIGTERM.

JSON keys: An object, printed at the end.
  target: string. HOST:PORT as on the command line.
  address: string. Address and port of the server.
  verdict: string. One of keeps, forgets, server-closes, unclear.
  how: string. Result of the connections that failed. One of silent, reset. null: the verdict is not forgets.
  survives_s: number, seconds. The longest idle time that a connection survived. null: no connection survived.
  fails_s: number, seconds. The shortest idle time that a connection did not survive. null: no connection failed.
  server_closed_s: number, seconds. The idle time after which the server ended connections. null: the server ended none.
  policy: object. The policy for survives_s, as ka plan --path computes it. null: survives_s is null or less than 3.
  policy.idle: integer, seconds. Idle time before the first probe.
  policy.intvl: integer, seconds. Time from an unanswered probe to the next.
  policy.cnt: integer, probes. Number of unanswered probes that end the connection.
  took_s: number, seconds. Duration of the measurement.
  trials: array of objects. The connections, in the order of their ends.
  trials[].idle_s: number, seconds. Idle time before the first probe left, or before the connection ended.
  trials[].result: string. One of answered, silent, reset, closed. reset: RST. closed: FIN from the server.
  trials[].after_ms: integer, milliseconds. Time from the first probe to the answer or the reset. null: no probe was \
  sent, or none was answered.

With --send, ka reads and discards the answer. The idle time begins after the last packet. ka does not speak TLS.

With --serve, ka keeps at most 1000 connections, or fewer if the hard limit of open files is lower (ulimit -Hn). If a \
client connects while all places are taken, ka closes the oldest connection of the address that has the most \
connections. ka sends nothing to a client that is not ka measure --from-server. If such a client vanishes, keepalive \
ends its connection only after 9 h, because an earlier probe would end the idle time of a measurement."
)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag")]
pub(crate) struct MeasureArgs {
    /// The server: a host name or an address, and a port. An IPv6 address needs brackets, and a link-local one the
    /// interface, as [fe80::7%eth0]:22
    #[arg(value_name = "HOST:PORT", value_parser = measure::target)]
    pub(crate) server: Option<measure::MeasureTarget>,
    /// The shortest idle time, at least 1 s
    #[arg(long, value_name = "S", default_value = "10s", value_parser = duration::fine_seconds,
          allow_negative_numbers = true)]
    pub(crate) from: u32,
    /// The longest idle time, at most 9 h
    #[arg(long, value_name = "S", default_value = "10m", value_parser = duration::fine_seconds,
          allow_negative_numbers = true)]
    pub(crate) to: u32,
    /// The precision of the result, at least 500 ms. Default: 5 s, or half of the time between --from and --to if that
    /// is less
    #[arg(long, value_name = "S", value_parser = duration::fine_seconds, allow_negative_numbers = true)]
    pub(crate) precision: Option<u32>,
    /// Send this text on each connection first, for servers that soon close the connection of a silent client. The text
    /// may contain the escapes \r, \n, \t, \\ and \xNN
    #[arg(long, value_name = "TEXT", value_parser = measure::unescaped, allow_hyphen_values = true)]
    pub(crate) send: Option<measure::FirstBytes>,
    /// Connect from this local address
    #[arg(long, value_name = "ADDR", value_parser = measure::local_address)]
    pub(crate) bind: Option<IpAddr>,
    /// Use only IPv4
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    pub(crate) ipv4: bool,
    /// Use only IPv6
    #[arg(short = '6', long)]
    pub(crate) ipv6: bool,
    /// The maximum number of connections at a time, 1 to 200. With fewer connections, a measurement takes longer
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = measure::connections,
          allow_negative_numbers = true)]
    pub(crate) connections: usize,
    /// Let the server send the probes. A ka measure --serve must run at HOST:PORT
    #[arg(long, conflicts_with = "send")]
    pub(crate) from_server: bool,
    /// Run the server of a measurement: keep all connections to this port until SIGINT or SIGTERM comes. Without ADDR,
    /// accept connections to all addresses of this machine
    #[arg(long, value_name = "[ADDR:]PORT", value_parser = measure::listening_address,
          conflicts_with_all = [
              "from", "to", "precision", "send", "bind", "ipv4", "ipv6", "connections", "from_server", "json",
          ])]
    pub(crate) serve: Option<measure::ListeningAddress>,
    /// Print one line per connection, also if standard error is a terminal
    #[arg(short, long)]
    pub(crate) verbose: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Compute a policy, and show its effects and how to configure it in other software
///
/// ka prints a warning if the user timeout is shorter than the idle time, if the policy has a single probe, or if the
/// interval is longer than the idle time.
///
/// While sent data is unacknowledged, the kernel sends no keepalive probes. ka also prints how long a dead peer then
/// stays undetected, from the policy and the sysctls net.ipv4.tcp_retries2 and net.ipv4.tcp_rto_max_ms of this network
/// namespace. If the policy has neither rto_max nor a user timeout, ka prints what rto_max=auto would change. See
/// ka-run(1).
#[derive(Args, Debug)]
#[command(
    group = ArgGroup::new("what").required(true).args(["detect", "path", "preset", "policy", "list"]),
    after_help = "Examples:
  ka plan --detect 30s            detect a dead peer within 30 s
  ka plan --detect 30s -r auto    the same, also while data is unacknowledged
  ka plan --path 350s             keep open a path that forgets after 350 s
  ka plan --preset aws-nlb --connections 50000
  ka plan --policy 60,10,6
  ka plan --list

JSON keys: Without --list: an object.
  policy: string. The policy, as a text that --policy takes.
  idle: integer, seconds. Idle time before the first probe.
  intvl: integer, seconds. Time from an unanswered probe to the next.
  cnt: integer, probes. How many unanswered probes end the connection.
  user_timeout_ms: integer, milliseconds. TCP_USER_TIMEOUT, 0 for none. null: the policy does not set it.
  rto_max_ms: integer, milliseconds. TCP_RTO_MAX_MS. null: the policy does not set it.
  typical_ms: integer, milliseconds. Time in which a dead peer is detected if no timer of the kernel is late.
  worst_ms: integer, milliseconds. The same time if all timers are as late as they can be.
  data_typical_ms: integer, milliseconds. Time in which a dead peer is detected while data is unacknowledged.
  data_worst_ms: integer, milliseconds. The same time if the kernel notices one rto_max later, when the next \
  retransmission is due.
  tcp_retries2: integer, retransmissions. net.ipv4.tcp_retries2, from which these two times are computed. 15 if ka \
  cannot read it.
  auto_rto_max: object. What rto_max=auto would change. null: the policy sets rto_max or a user timeout.
  auto_rto_max.rto_max_ms: integer, milliseconds. The value of rto_max=auto.
  auto_rto_max.data_typical_ms: integer, milliseconds. data_typical_ms with this value.
  auto_rto_max.data_worst_ms: integer, milliseconds. data_worst_ms with this value.
  probes_per_hour: number, probes. How many probes an idle connection sends in an hour while the peer answers.
  bytes_per_day: number, bytes. Size of these probes and their answers in a day, over IPv4.
  connections: integer, connections. The value of --connections.
  all_probes_per_hour: number, probes. probes_per_hour for all connections.
  all_bytes_per_day: number, bytes. bytes_per_day for all connections.
  warnings: array of strings. The warnings, in sentences for people. Empty: no warning.

JSON keys: With --list: an array with an object per preset.
  name: string. The name that --preset takes.
  path_idle_s: integer, seconds. The time after which the middlebox forgets an idle connection.
  idle: integer, seconds. The policy of the preset: idle time before the first probe.
  intvl: integer, seconds. Time from an unanswered probe to the next.
  cnt: integer, probes. How many unanswered probes end the connection.
  source: string. Publisher and title of the document that states path_idle_s.
  url: string. The address of that document."
)]
pub(crate) struct PlanArgs {
    /// Detect a dead peer within this time, even if the kernel's timers are late
    #[arg(long, value_name = "S", value_parser = duration::fine_seconds, allow_negative_numbers = true)]
    pub(crate) detect: Option<u32>,
    /// Keep connections open through a middlebox that forgets them when they are idle for this time
    #[arg(long, value_name = "S", value_parser = duration::seconds, allow_negative_numbers = true)]
    pub(crate) path: Option<u32>,
    /// Keep connections open through a well-known middlebox: a name from --list
    #[arg(long, value_name = "NAME")]
    pub(crate) preset: Option<String>,
    /// Show this policy: 60,10,6, or any of idle=, intvl=, cnt=, user_timeout= and rto_max=, separated by commas. See
    /// ka-run(1)
    #[arg(short = 'p', long, value_name = "TEXT", value_parser = policy_flags::policy)]
    pub(crate) policy: Option<Config>,
    /// Add this TCP_RTO_MAX_MS, the longest time between two retransmissions: 1000 to 120000 ms, such as 2000 or 2s, or
    /// auto. See ka-run(1)
    #[arg(short = 'r', long, value_name = "MS", value_parser = duration::rto_max, conflicts_with = "list",
          allow_negative_numbers = true)]
    pub(crate) rto_max: Option<RtoMax>,
    /// List the presets and the sources of their numbers
    #[arg(long)]
    pub(crate) list: bool,
    /// Show the cost for this many connections
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = connections, allow_negative_numbers = true)]
    pub(crate) connections: u64,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Show or set the default timers of the system
///
/// The defaults are the three sysctls net.ipv4.tcp_keepalive_* of this network namespace. They apply to sockets whose
/// program turns keepalive on and sets no timers. They do not turn keepalive on. ka run and ka attach do that. ka also
/// prints the sysctls that decide how long a dead peer stays undetected while data is unacknowledged.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  ka defaults
  sudo ka defaults --set 60,10,6
  sudo ka defaults --set 60,10,6 --persist

JSON keys: An object. With --set, it has the new values.
  idle: integer, seconds. net.ipv4.tcp_keepalive_time.
  intvl: integer, seconds. net.ipv4.tcp_keepalive_intvl.
  cnt: integer, probes. net.ipv4.tcp_keepalive_probes.
  typical_ms: integer, milliseconds. Time in which a dead peer is detected. null: keepalive cannot work, because a \
  value is less than 1.
  tcp_retries2: integer, retransmissions. net.ipv4.tcp_retries2. 15 if ka cannot read it.
  tcp_rto_max_ms: integer, milliseconds. net.ipv4.tcp_rto_max_ms. null: the kernel does not have it (before Linux \
  6.15).
  data_typical_ms: integer, milliseconds. Time in which a dead peer is detected while data is unacknowledged.
  connections: integer, connections. How many connections of this network namespace are in the states established and \
  close-wait. null: ka cannot list the sockets.
  with_keepalive: integer, connections. How many of them have keepalive on. null: as for connections.
  unknown: integer, connections. For how many of them ka could not find out whether keepalive is on. null: as for \
  connections.

--set needs CAP_NET_ADMIN in the user namespace that owns this network namespace, and a writable /proc/sys.")]
pub(crate) struct DefaultsArgs {
    /// Set the values of idle, intvl and cnt that the policy names. On failure, nothing changes
    #[arg(long, value_name = "POLICY", value_parser = policy_flags::policy)]
    pub(crate) set: Option<Config>,
    /// Keep the values after a reboot: write this sysctl.d(5) file, which must be new or written by ka. Without FILE:
    /// /etc/sysctl.d/60-ka.conf
    #[arg(long, value_name = "FILE", requires = "set", num_args = 0..=1, require_equals = true,
          default_missing_value = "/etc/sysctl.d/60-ka.conf")]
    pub(crate) persist: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Give all programs of a cgroup a policy, by eBPF
///
/// eBPF programs in the kernel set the sockets of the cgroup and of the cgroups below it, for example of a whole
/// systemd service. They reach static and Go programs, io_uring, and programs that start in the cgroup later. No
/// process of ka needs to run.
#[derive(Args, Debug)]
#[command(
    arg_required_else_help = true,
    after_help = "Examples:
  sudo ka cgroup attach -p 280,30,5 system.slice/nginx.service
  sudo ka cgroup ls
  sudo ka cgroup detach system.slice/nginx.service"
)]
pub(crate) struct CgroupArgs {
    #[command(subcommand)]
    pub(crate) command: CgroupCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CgroupCommand {
    Attach(CgroupAttachArgs),
    Detach(CgroupDetachArgs),
    Ls(CgroupLsArgs),
}

/// Give a cgroup a policy, until ka cgroup detach or a reboot
///
/// ka sets the sockets that are already open. From then on, each socket gets the policy as it connects, listens or is
/// accepted. The new policy replaces an earlier policy of the same cgroup. A policy in mode force overrides the
/// policies of the cgroups below. ka reports a policy of a cgroup above that overrides the new policy, and policies of
/// cgroups below that the new policy overrides.
///
/// The mode and each value of the policy come from the flags, the KA_ variables, /etc/ka.conf, or the defaults 60,10,6
/// and force, in this order: see ka-run(1). ka cgroup attach ignores KA_RULES and KA_SKIP.
#[derive(Args, Debug)]
#[command(
    mut_arg("whole", on_only),
    after_help = "Examples:
  sudo ka cgroup attach system.slice/nginx.service
  sudo ka cgroup attach -p 280,30,5 --mode default /sys/fs/cgroup/system.slice
  sudo ka cgroup attach --foreground kubepods.slice

Status: 1 if ka could not set or examine some open sockets. With --foreground, ka only prints a message about these, \
and the status after a signal is 0.

JSON keys: An object.
  cgroup: string. The name of the cgroup, as in /proc/PID/cgroup.
  policy: string. The policy, as a text that --policy takes.
  mode: string. One of force, default.
  set: integer, sockets. How many open sockets ka set.
  unchanged: integer, sockets. How many open sockets needed no change.
  failed: integer, sockets. How many open sockets ka could not set.
  left: array of strings. Why ka did not examine some open sockets. Empty: ka examined all.

With --foreground, ka tells the service manager when the policy is in force, and sends watchdog messages if the \
service manager requests them (NOTIFY_SOCKET, WATCHDOG_USEC: sd_notify(3)). When ka has set the open sockets, it drops \
all capabilities except CAP_BPF.

Needs CAP_BPF and CAP_NET_ADMIN, and CAP_PERFMON to set open sockets. To set open sockets in other network namespaces \
(of containers), ka also needs CAP_SYS_ADMIN and CAP_SYS_PTRACE. To read cgroup directories that only their owner may \
read, ka also needs CAP_DAC_READ_SEARCH. Needs Linux 5.9 and cgroup v2. To set open sockets, and for --mode default, \
ka needs Linux 6.1. Without --foreground, the bpf filesystem must be mounted at /sys/fs/bpf."
)]
pub(crate) struct CgroupAttachArgs {
    #[command(flatten)]
    pub(crate) policy: PolicyFlags,
    /// Choose whether the cgroup's programs may override the policy. Default: KA_MODE, or force
    #[arg(long, value_parser = policy_flags::cgroup_mode(), help_heading = "Policy")]
    pub(crate) mode: Option<Mode>,
    /// The cgroup: its directory, or its name as in /proc/PID/cgroup
    #[arg(value_name = "CGROUP")]
    pub(crate) cgroup: OsString,
    /// Stay in the foreground. The policy ends when ka ends: at SIGINT or SIGTERM, when killed, or when the cgroup is
    /// removed
    ///
    /// The new policy does not replace a policy that the cgroup already has. Both are in force until one of them ends.
    /// If they differ, in mode force the later policy wins.
    #[arg(short, long)]
    pub(crate) foreground: bool,
    /// Accept the root cgroup. The policy then applies to all programs of this machine
    #[arg(long)]
    pub(crate) whole_machine: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Remove the policy of a cgroup. The sockets keep their settings
///
/// ka prints one line per policy. With --all, ka also removes empty cgroups that ka run --via cgroup left behind
/// because it was killed.
#[derive(Args, Debug)]
#[command(
    group = ArgGroup::new("which").required(true).args(["cgroup", "all"]),
    after_help = "Examples:
  sudo ka cgroup detach system.slice/nginx.service
  sudo ka cgroup detach --all

Status: 1 if the cgroup has no policy of its own.

Needs CAP_BPF and CAP_NET_ADMIN.")]
pub(crate) struct CgroupDetachArgs {
    /// The cgroup: its directory, or its name as in /proc/PID/cgroup
    #[arg(value_name = "CGROUP")]
    pub(crate) cgroup: Option<OsString>,
    /// Detach all policies of ka cgroup attach, also the leftover pins of removed cgroups
    #[arg(short, long)]
    pub(crate) all: bool,
}

/// List the cgroups that have a policy
///
/// ka asks the kernel for the policies in force.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  sudo ka cgroup ls
  sudo ka cgroup ls --json system.slice

Status: 1 if ka could not examine some cgroups. ka names them and the reason on standard error.

JSON keys: An array with an object per policy.
  cgroup: string. The name of the cgroup, as in /proc/PID/cgroup. null: the cgroup has been removed, and the pins of \
  its policy are left. One object stands for all removed cgroups.
  id: integer. The inode number of the directory of the cgroup. 0 if cgroup is null.
  policy: string. The policy, as a text that --policy takes. null: the cgroup has been removed, or ka cannot read the \
  policy in the pins.
  mode: string. One of force, default. null: as for policy.
  idle: integer, seconds. Idle time before the first probe. null: as for policy.
  intvl: integer, seconds. Time from an unanswered probe to the next. null: as for policy.
  cnt: integer, probes. How many unanswered probes end a connection. null: as for policy.
  pinned: string. The directory of the pins in the bpf filesystem. null: not pinned, so the policy ends with the \
  process of ka that attached it.
  above: boolean. Whether the cgroup is above CGROUP. Such a policy is also in force in CGROUP.

Needs CAP_NET_ADMIN and CAP_SYS_ADMIN. If root has only CAP_BPF, ka lists only the policies that ka cgroup \
attach has pinned.")]
pub(crate) struct CgroupLsArgs {
    /// List only this cgroup, the cgroups below it, and the policies of cgroups above that are in force in it
    #[arg(value_name = "CGROUP")]
    pub(crate) cgroup: Option<OsString>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Print completions for a shell
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  ka completions bash >/usr/share/bash-completion/completions/ka
  ka completions zsh >/usr/share/zsh/vendor-completions/_ka
  ka completions fish >/usr/share/fish/vendor_completions.d/ka.fish")]
pub(crate) struct CompletionsArgs {
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

/// Parses a number that consists of digits only. [`str::parse`] also accepts a plus sign.
pub(crate) fn number<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
}

pub(crate) fn port(text: &str) -> Result<u16, String> {
    number(text).filter(|port| *port > 0).ok_or_else(|| "must be a port number, 1..65535".to_owned())
}

fn probes(text: &str) -> Result<u32, String> {
    let count = number(text).filter(|count| (1..=100).contains(count));
    count.ok_or_else(|| "must be a number of probes, 1..100".to_owned())
}

fn connections(text: &str) -> Result<u64, String> {
    number(text).filter(|count| *count > 0).ok_or_else(|| "must be a number, 1 or more".to_owned())
}

/// Parses a command line. The first word is the name of the command.
pub(crate) fn parse(words: Vec<OsString>) -> Result<Ka, clap::Error> {
    let subcommand = words.get(1).and_then(|word| Command::define(word.to_str()?));
    let mut command = lay_out(match subcommand {
        Some(subcommand) => clap::Command::new("ka").subcommand(subcommand),
        None => Ka::command(),
    });
    let matches = command.try_get_matches_from_mut(words)?;
    Ka::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

/// Lays out the text below the options. clap wraps the paragraphs at the terminal's width. The examples are not
/// wrapped, because a wrapped command cannot be copied.
fn lay_out(command: clap::Command) -> clap::Command {
    let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let (examples, rest): (Vec<_>, Vec<_>) =
        text.split("\n\n").partition(|paragraph| paragraph.starts_with("Examples:"));
    let rest: Vec<_> = rest
        .iter()
        // The keys of JSON are a list.
        .map(|text| if text.starts_with("JSON keys:") { text.to_string() } else { text.replace('\n', " ") })
        .collect();
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
    let pid = number(text).filter(|pid| *pid > 0);
    pid.ok_or_else(|| "must be a PID, such as 1234 (pidof NAME finds it)".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn clap_accepts_the_definition() {
        super::Ka::command().debug_assert();
    }

    /// --undo restores the settings of a file, so no flag may name a policy.
    #[test]
    fn undo_rejects_each_flag_of_a_policy() {
        let command = super::Ka::command();
        let attach = command.find_subcommand("attach").unwrap();
        let undo = attach.get_arguments().find(|flag| flag.get_id() == "undo").unwrap();
        let rejected: Vec<_> =
            attach.get_arg_conflicts_with(undo).iter().map(|flag| flag.get_id().as_str()).collect();
        let flags = attach.get_arguments().filter(|flag| flag.get_help_heading() == Some("Policy"));
        let flags: Vec<_> = flags.map(|flag| flag.get_id().as_str()).collect();
        assert!(flags.contains(&"rto_max"), "{flags:?}");
        for flag in flags {
            assert!(rejected.contains(&flag), "--undo accepts {flag}");
        }
    }

    #[test]
    fn examples_fit_into_80_columns() {
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
