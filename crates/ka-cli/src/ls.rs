//! `ka ls`: lists TCP sockets with their processes and keepalive settings.

use std::borrow::Cow;
use std::fmt::{Display, Write as _};
use std::io::{self, BufWriter, Write};
use std::net::SocketAddr;
use std::time::Duration;

use ka_core::{Config, Retransmission, UserTimeout};
use ka_reach::diag::Timer;
use serde::{Serialize, Serializer};

use crate::args;
use crate::failure::{CommandResult, FOUND, Failure, UNKNOWN, warn};
use crate::json;
use crate::plural::count;
use crate::table::{self, Cell, Column, Layout, Paint};
use ka_reach::diag::State;
use ka_reach::escape::{lossless, visible};
use ka_reach::listing::{ListedSocket, Selection, SocketOwner, sockets};
use ka_reach::netns::{self, Namespace};
use ka_reach::worker::Workers;
use ka_reach::{limits, privilege, process, reason::reason};

/// The longest idle time without the risk "slow", in seconds. AWS load balancers and NAT gateways, and most others (`ka
/// plan --list`), forget a connection after this time or earlier.
const SLOW_S: i32 = 350;

pub(crate) fn ls(args: &args::LsArgs) -> CommandResult {
    let mut pids = [&*args.pids, &*args.pid].concat();
    pids.sort_unstable();
    pids.dedup();
    let failure = |why: &dyn Display| Failure::new(format_args!("ls: {why}"));
    if !args.state.is_empty() && args.state.iter().all(|state| *state == State::Close) {
        let why = "--state close: the kernel does not list closed and unconnected sockets; ka check PID counts them";
        return Err(failure(&why));
    }
    let (namespaces, mut incomplete) = namespaces(args, &pids).map_err(|why| failure(&why))?;
    let states: Vec<_> =
        if args.state.is_empty() { State::with_options().collect() } else { args.state.clone() };
    let selection = Selection { pids: &pids, port: args.port, namespaces: &namespaces };
    let listing =
        sockets(&mut Workers::default(), &states, Some(&selection)).map_err(|error| failure(&error))?;
    incomplete.extend(listing.incomplete.iter().map(ToString::to_string));
    let all = Counts::of(&listing.sockets);
    let mut rows: Vec<_> = listing.sockets.iter().map(SocketRow::new).collect();
    if args.off {
        rows.retain(|row| row.keepalive != Some(true));
    }
    if args.risk {
        rows.retain(|row| !row.risks.is_empty());
    }
    rows.sort_by_cached_key(SocketRow::order);

    let mut out = BufWriter::new(io::stdout().lock());
    if args.json {
        json::write_rows(&mut out, rows.iter())?;
    } else {
        let has_netns = args.all_netns || namespaces.len() > 1;
        write_table(&mut out, &rows, has_netns)?;
        writeln!(out, "{}", footer(&rows, &all, args.off || args.risk))?;
    }
    out.flush()?;
    for why in incomplete.iter().chain(&hint(&rows, args.off)) {
        warn(format_args!("ls: {why}"));
    }
    let is_incomplete = !incomplete.is_empty();
    Ok(match args.off {
        true if all.off > 0 => FOUND,
        // A monitor must not mistake unknown sockets for sockets with keepalive.
        true if all.unknown > 0 || is_incomplete => UNKNOWN,
        false if is_incomplete => FOUND,
        _ => 0,
    })
}

/// Returns the network namespaces to list, and messages about those that ka could not open. An empty list means the
/// namespace that ka runs in.
fn namespaces(args: &args::LsArgs, pids: &[i32]) -> Result<(Vec<Namespace>, Vec<String>), String> {
    if let Some(netns) = &args.netns {
        let namespace = Namespace::named(netns).map_err(|error| error.to_string())?;
        namespace.enter().map_err(|error| error.to_string())?;
        return Ok((vec![namespace], Vec::new()));
    }
    if args.all_netns {
        // Each namespace needs a descriptor.
        limits::raise_descriptor_limit();
        if !privilege::has(privilege::CAP_SYS_ADMIN) {
            return Err("--all-netns needs CAP_SYS_ADMIN (run ka as root)".to_owned());
        }
        let all = process::all().map_err(|error| format!("/proc: {}", reason(&error)))?;
        let (namespaces, refused) = netns::of(&all);
        let count = refused.len();
        let incomplete = refused.into_iter().next().map(|(pid, error)| {
            let why = privilege::explain(pid, error);
            let whose = process::title(pid);
            match count {
                1 => format!("the network namespace of {whose} is unknown: {why}"),
                more => {
                    format!("the network namespaces of {more} processes are unknown, such as {whose}: {why}")
                }
            }
        });
        return Ok((namespaces, incomplete.into_iter().collect()));
    }
    // If ka may not open the namespace of a process, it may not examine the process either, and reports that later.
    let (mut namespaces, _) = netns::of(pids);
    if namespaces.iter().all(Namespace::is_current) {
        namespaces.clear();
    }
    Ok((namespaces, Vec::new()))
}

/// Risks of a socket's keepalive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Risk {
    Off,
    /// The first probe comes after more than [`SLOW_S`].
    Slow,
    /// Unacknowledged data keeps the kernel from sending keepalive probes.
    Suspended,
    /// TCP_USER_TIMEOUT ends a silent connection at another time than cnt does.
    UserTimeout,
    /// At least half of cnt probes in a row had no answer.
    Unanswered,
}

impl Risk {
    const ALL: [Self; 5] = [Self::Off, Self::Slow, Self::Suspended, Self::UserTimeout, Self::Unanswered];

    const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Slow => "slow",
            Self::Suspended => "suspended",
            Self::UserTimeout => "user-timeout",
            Self::Unanswered => "unanswered",
        }
    }
}

impl Serialize for Risk {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// A row of the table, or an object of the JSON array.
#[derive(Serialize)]
struct SocketRow<'a> {
    netns: Option<&'a str>,
    pid: Option<i32>,
    fd: Option<i32>,
    comm: Option<Cow<'a, str>>,
    others: &'a [i32],
    local: SocketAddr,
    peer: Option<SocketAddr>,
    state: &'static str,
    keepalive: Option<bool>,
    idle: Option<i32>,
    intvl: Option<i32>,
    cnt: Option<i32>,
    user_timeout_ms: Option<i32>,
    rto_max_ms: Option<i32>,
    next_probe_ms: Option<u64>,
    unanswered_probes: Option<u32>,
    risks: Vec<Risk>,
    /// The reason why the socket could not be read.
    error: Option<String>,
    #[serde(skip)]
    socket: &'a ListedSocket,
}

impl<'a> SocketRow<'a> {
    fn new(socket: &'a ListedSocket) -> Self {
        let ListedSocket { entry, owner, settings, .. } = socket;
        let (pid, fd) = owner.as_ref().map(|SocketOwner { pid, fd, .. }| (*pid, *fd)).unzip();
        let comm = owner.as_ref().and_then(|owner| owner.comm.as_deref()).map(lossless);
        Self {
            netns: socket.netns.as_deref(),
            pid,
            fd,
            comm,
            others: &socket.others,
            local: entry.local,
            peer: entry.peer,
            state: entry.state.name(),
            keepalive: socket.keepalive(),
            idle: settings.map(|settings| settings.idle),
            intvl: settings.map(|settings| settings.intvl),
            cnt: settings.map(|settings| settings.cnt),
            user_timeout_ms: settings.and_then(|settings| settings.user_timeout),
            rto_max_ms: settings.and_then(|settings| settings.rto_max),
            next_probe_ms: next_probe(socket),
            unanswered_probes: entry.status.map(|status| status.probes),
            risks: risks(socket),
            error: socket.error.as_ref().map(ToString::to_string),
            socket,
        }
    }

    /// Formats the process that has the socket, and the number of other processes that have it.
    fn holder(&self) -> String {
        let ListedSocket { owner, others, .. } = self.socket;
        let holder = |owner: &SocketOwner| table::holder(owner.comm.as_deref(), owner.pid, others.len());
        owner.as_ref().map_or_else(|| "-".to_owned(), holder)
    }

    /// Returns the sort key: by process, listeners first. Sockets without a process come last.
    fn order(&self) -> impl Ord + use<'a> {
        (self.netns, self.pid.is_none(), self.pid, self.peer.is_some(), self.fd, self.local, self.peer)
    }

    /// Returns whether the process or the settings are missing, and ka would know them with more rights.
    fn is_incomplete(&self) -> bool {
        let has_options = State::with_options().any(|state| state == self.socket.entry.state);
        self.pid.is_none() && self.socket.entry.inode != 0 || self.socket.settings.is_none() && has_options
    }
}

/// Returns the time until the next keepalive probe if no packet arrives, in milliseconds.
///
/// The kernel may have armed the timer before the last packet. When the timer fires, the connection has not been idle
/// for long enough, and the kernel re-arms the timer (net/ipv4/tcp_timer.c, `tcp_keepalive_timer`). So if the idle time
/// is known and no probe is unanswered, the result is at least the rest of the idle time.
fn next_probe(socket: &ListedSocket) -> Option<u64> {
    let Some(Timer::KeepAlive(expires)) = &socket.entry.timer else { return None };
    if socket.keepalive() != Some(true) || socket.entry.is_suspended() {
        return None;
    }
    let armed = u64::try_from(expires.as_millis()).ok()?;
    let left = socket.settings.zip(socket.entry.status).and_then(|(settings, status)| {
        let silent = u64::from(status.last_ack_ms.min(status.last_recv_ms));
        let idle = u64::try_from(settings.idle).ok()?.checked_mul(1000)?;
        (status.probes == 0).then(|| idle.saturating_sub(silent))
    });
    Some(left.map_or(armed, |left| armed.max(left)))
}

fn risks(socket: &ListedSocket) -> Vec<Risk> {
    let settings = socket.settings;
    let is = |risk| match risk {
        Risk::Off => socket.keepalive() == Some(false),
        Risk::Slow => settings.is_some_and(|settings| settings.enabled && settings.idle > SLOW_S),
        Risk::Suspended => socket.keepalive() != Some(false) && socket.entry.is_suspended(),
        Risk::UserTimeout => settings.is_some_and(|settings| {
            let user_timeout = settings.user_timeout.filter(|timeout| *timeout > 0);
            settings.enabled && user_timeout.is_some() && overrides_count(&settings)
        }),
        Risk::Unanswered => settings.zip(socket.entry.status).is_some_and(|(settings, status)| {
            // The kernel also counts probes of a closed window. tcp_retries2 limits these, not cnt.
            let is_probed = settings.enabled && !socket.entry.is_suspended();
            is_probed && status.probes > 0 && 2 * i64::from(status.probes) >= i64::from(settings.cnt)
        }),
    };
    Risk::ALL.into_iter().filter(|risk| is(*risk)).collect()
}

/// Returns whether the user timeout ends a silent connection at another time than cnt does.
fn overrides_count(settings: &ka_core::Settings) -> bool {
    let Ok(with) = Config::try_from(*settings) else { return true };
    let without = with.with_user_timeout(UserTimeout::Keep);
    without.is_ok_and(|without| without.detection() != with.detection())
}

fn write_table(out: &mut impl Write, rows: &[SocketRow<'_>], has_netns: bool) -> io::Result<()> {
    // PROCESS fits a name of 15 letters and a PID of 7 digits. LOCAL and PEER fit any IPv4 address and port.
    const COLUMNS: [Column; 15] = [
        Column::elastic("NETNS", 8),
        Column::elastic("PROCESS", 23).keeping('/').down_to(12),
        Column::right("FD").droppable(7),
        Column::left("STATE").droppable(6),
        Column::elastic("LOCAL", 21).keeping(':').down_to(15),
        Column::elastic("PEER", 21).keeping(':').down_to(15),
        Column::left("KEEP"),
        Column::right("IDLE").droppable(1),
        Column::right("INTVL").droppable(5),
        Column::right("CNT").droppable(4),
        Column::right("TIMEOUT").droppable(8),
        Column::right("RTO_MAX").droppable(9),
        Column::right("NEXT").droppable(3),
        Column::right("LOST").droppable(2),
        Column::left("RISK"),
    ];
    if rows.is_empty() {
        return Ok(());
    }
    let from = usize::from(!has_netns);
    let rows: Vec<_> = rows.iter().map(|row| cells(row).split_off(from)).collect();
    table::write(out, Layout::standard(), COLUMNS.get(from..).unwrap_or_default(), &rows)?;
    writeln!(out)
}

/// The numbers of sockets whose keepalive is on, off and unknown.
struct Counts {
    on: usize,
    off: usize,
    unknown: usize,
}

impl Counts {
    fn of(sockets: &[ListedSocket]) -> Self {
        Self::count(sockets.iter().map(ListedSocket::keepalive))
    }

    fn count(keepalives: impl Iterator<Item = Option<bool>>) -> Self {
        let mut counts = Self { on: 0, off: 0, unknown: 0 };
        for keepalive in keepalives {
            *match keepalive {
                Some(true) => &mut counts.on,
                Some(false) => &mut counts.off,
                None => &mut counts.unknown,
            } += 1;
        }
        counts
    }

    const fn all(&self) -> usize {
        self.on + self.off + self.unknown
    }

    /// Formats the counts that are not 0, such as `1 on, 2 unknown`.
    fn words(&self) -> String {
        let counts = [(self.on, "on"), (self.off, "off"), (self.unknown, "unknown")];
        let counts = counts.into_iter().filter(|(count, _)| *count > 0);
        counts.map(|(count, word)| format!("{count} {word}")).collect::<Vec<_>>().join(", ")
    }
}

/// Returns the line below the table. If the rows are filtered, it counts the listed and the other sockets separately.
fn footer(rows: &[SocketRow<'_>], all: &Counts, is_filtered: bool) -> String {
    let listed = Counts::count(rows.iter().map(|row| row.keepalive));
    let mut line = if is_filtered {
        let words = listed.words();
        let colon = if words.is_empty() { "" } else { ": " };
        format!("{} of {} listed{colon}{words}", listed.all(), count(all.all(), "socket"))
    } else {
        let unknown = if all.unknown > 0 { format!(", {} unknown", all.unknown) } else { String::new() };
        format!("{}: {} on, {} off{unknown}", count(all.all(), "socket"), all.on, all.off)
    };
    for risk in Risk::ALL.into_iter().filter(|risk| *risk != Risk::Off) {
        let count = rows.iter().filter(|row| row.risks.contains(&risk)).count();
        if count > 0 {
            let _ = write!(line, "; {count} {}", risk.name());
        }
    }
    let others = Counts {
        on: all.on.saturating_sub(listed.on),
        off: all.off.saturating_sub(listed.off),
        unknown: all.unknown.saturating_sub(listed.unknown),
    };
    if others.all() > 0 {
        let _ = write!(line, ". Not listed: {}", others.words());
    }
    line
}

/// Returns the reason why the process or the settings are missing in some rows, and what to do.
fn hint(rows: &[SocketRow<'_>], off: bool) -> Option<String> {
    if !privilege::may_look_anywhere() {
        let incomplete = rows.iter().filter(|row| row.is_incomplete()).count();
        let of = count(incomplete, "socket");
        return (incomplete > 0).then(|| {
            format!("the process or the settings of {of} are unknown: run ka as root (needs CAP_SYS_PTRACE)")
        });
    }
    let unknown = rows.iter().filter(|row| row.keepalive.is_none()).count();
    let of = count(unknown, "socket");
    (off && unknown > 0)
        .then(|| format!("keepalive of {of} is unknown: ka could not read it through a process or by eBPF"))
}

fn cells(row: &SocketRow<'_>) -> Vec<Cell> {
    let number = |value: Option<i32>, unit: &str| -> Cell {
        value.map_or_else(|| "?".into(), |value| format!("{value}{unit}").into())
    };
    let keepalive = match row.keepalive {
        Some(true) => Cell::painted("on", Paint::Good),
        Some(false) => Cell::painted("off", Paint::Bad),
        None => "?".into(),
    };
    let user_timeout = match row.user_timeout_ms {
        Some(0) => "-".into(),
        other => number(other, "ms"),
    };
    let rto_max = match row.rto_max_ms {
        // The other settings are known, so the kernel or the socket lacks this option.
        None if row.idle.is_some() => "-".into(),
        other if other == Some(Retransmission::STANDARD.rto_max_ms) => "-".into(),
        other => number(other, "ms"),
    };
    let probes = match row.unanswered_probes {
        Some(0) => "-".into(),
        Some(probes) => Cell::painted(probes.to_string(), Paint::Warning),
        None => "?".into(),
    };
    let next: Cell = row.next_probe_ms.map_or_else(
        || "-".into(),
        |left| format!("{:.1}s", Duration::from_millis(left).as_secs_f64()).into(),
    );
    let risks: Vec<_> = row.risks.iter().map(|risk| risk.name()).collect();
    let paint = if row.risks.contains(&Risk::Off) { Paint::Bad } else { Paint::Warning };
    vec![
        row.netns.map_or_else(|| "-".into(), |netns| visible(netns.as_bytes()).into_owned().into()),
        row.holder().into(),
        row.fd.map_or_else(|| "-".into(), |fd| fd.to_string().into()),
        row.state.into(),
        row.local.to_string().into(),
        row.peer.map_or_else(|| "*".into(), |peer| peer.to_string().into()),
        keepalive,
        number(row.idle, "s"),
        number(row.intvl, "s"),
        number(row.cnt, ""),
        user_timeout,
        rto_max,
        next,
        probes,
        Cell::painted(risks.join(","), paint),
    ]
}
