//! A socket with its process, its settings and its risks: a row of a table, or an object of a JSON array.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use ka_core::Retransmission;
use ka_reach::diag::State;
use ka_reach::escape::{lossless, visible};
use ka_reach::listing::{ListedSocket, SocketOwner};
use ka_reach::risk::{Risk, next_probe, risks};
use serde::Serialize;

use crate::plural::count;
use crate::table::{self, Cell, Column, Paint};

/// The columns of the table. The first one, NETNS, is shown only if there are several network namespaces.
///
/// PROCESS fits a name of 15 letters and a PID of 7 digits. LOCAL and PEER fit any IPv4 address and port.
pub const COLUMNS: [Column; 15] = [
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

/// A row of the table, or an object of the JSON array.
#[derive(Serialize)]
#[allow(missing_docs, reason = "the fields are the keys of the JSON of ka-ls(1)")]
pub struct SocketRow<'a> {
    pub netns: Option<&'a str>,
    pub pid: Option<i32>,
    pub fd: Option<i32>,
    pub comm: Option<Cow<'a, str>>,
    pub others: &'a [i32],
    pub local: SocketAddr,
    pub peer: Option<SocketAddr>,
    pub state: &'static str,
    pub keepalive: Option<bool>,
    pub idle: Option<i32>,
    pub intvl: Option<i32>,
    pub cnt: Option<i32>,
    pub user_timeout_ms: Option<i32>,
    pub rto_max_ms: Option<i32>,
    pub next_probe_ms: Option<u64>,
    pub unanswered_probes: Option<u32>,
    pub risks: Vec<Risk>,
    /// The reason why the socket could not be read.
    pub error: Option<String>,
    #[serde(skip)]
    pub socket: &'a ListedSocket,
}

impl<'a> SocketRow<'a> {
    /// Evaluates a socket.
    pub fn new(socket: &'a ListedSocket) -> Self {
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
    pub fn holder(&self) -> String {
        let ListedSocket { owner, others, .. } = self.socket;
        let holder = |owner: &SocketOwner| table::holder(owner.comm.as_deref(), owner.pid, others.len());
        owner.as_ref().map_or_else(|| "-".to_owned(), holder)
    }

    /// Returns the sort key: by process, listeners first. Sockets without a process come last.
    pub fn order(&self) -> impl Ord + use<'a> {
        (self.netns, self.pid.is_none(), self.pid, self.peer.is_some(), self.fd, self.local, self.peer)
    }

    /// Returns whether the process or the settings are missing, and ka would know them with more rights.
    pub fn is_incomplete(&self) -> bool {
        let has_options = State::with_options().any(|state| state == self.socket.entry.state);
        self.pid.is_none() && self.socket.entry.inode != 0 || self.socket.settings.is_none() && has_options
    }

    /// Formats the cells of the row, one for each of [`COLUMNS`].
    pub fn cells(&self) -> Vec<Cell> {
        let number = |value: Option<i32>, unit: &str| -> Cell {
            value.map_or_else(|| "?".into(), |value| format!("{value}{unit}").into())
        };
        let keepalive = match self.keepalive {
            Some(true) => Cell::painted("on", Paint::Good),
            Some(false) => Cell::painted("off", Paint::Bad),
            None => "?".into(),
        };
        let user_timeout = match self.user_timeout_ms {
            Some(0) => "-".into(),
            other => number(other, "ms"),
        };
        let rto_max = match self.rto_max_ms {
            // The other settings are known, so the kernel or the socket lacks this option.
            None if self.idle.is_some() => "-".into(),
            other if other == Some(Retransmission::STANDARD.rto_max_ms) => "-".into(),
            other => number(other, "ms"),
        };
        let probes = match self.unanswered_probes {
            Some(0) => "-".into(),
            Some(probes) => Cell::painted(probes.to_string(), Paint::Warning),
            None => "?".into(),
        };
        let next: Cell = self.next_probe_ms.map_or_else(
            || "-".into(),
            |left| format!("{:.1}s", Duration::from_millis(left).as_secs_f64()).into(),
        );
        let risks: Vec<_> = self.risks.iter().map(|risk| risk.name()).collect();
        let paint = if self.risks.contains(&Risk::Off) { Paint::Bad } else { Paint::Warning };
        vec![
            self.netns.map_or_else(|| "-".into(), |netns| visible(netns.as_bytes()).into_owned().into()),
            self.holder().into(),
            self.fd.map_or_else(|| "-".into(), |fd| fd.to_string().into()),
            self.state.into(),
            self.local.to_string().into(),
            self.peer.map_or_else(|| "*".into(), |peer| peer.to_string().into()),
            keepalive,
            number(self.idle, "s"),
            number(self.intvl, "s"),
            number(self.cnt, ""),
            user_timeout,
            rto_max,
            next,
            probes,
            Cell::painted(risks.join(","), paint),
        ]
    }
}

/// The numbers of sockets whose keepalive is on, off and unknown.
#[derive(Debug, Default)]
pub struct Counts {
    /// On.
    pub on: usize,
    /// Off.
    pub off: usize,
    /// Unknown.
    pub unknown: usize,
}

impl Counts {
    /// Counts these sockets.
    pub fn of(sockets: &[ListedSocket]) -> Self {
        let mut counts = Self::default();
        for socket in sockets {
            counts.add(socket.keepalive());
        }
        counts
    }

    /// Counts a socket whose keepalive is on, off, or unknown.
    pub const fn add(&mut self, keepalive: Option<bool>) {
        *match keepalive {
            Some(true) => &mut self.on,
            Some(false) => &mut self.off,
            None => &mut self.unknown,
        } += 1;
    }

    /// Returns the number of sockets.
    pub const fn all(&self) -> usize {
        self.on + self.off + self.unknown
    }

    /// Formats the counts that are not 0, such as `1 on, 2 unknown`.
    pub fn words(&self) -> String {
        let counts = [(self.on, "on"), (self.off, "off"), (self.unknown, "unknown")];
        let counts = counts.into_iter().filter(|(count, _)| *count > 0);
        counts.map(|(count, word)| format!("{count} {word}")).collect::<Vec<_>>().join(", ")
    }
}

/// The numbers of the sockets in some rows.
#[derive(Debug, Default)]
pub struct Totals {
    /// The sockets by keepalive.
    pub listed: Counts,
    /// The sockets with each risk, in the order of [`Risk::ALL`].
    risks: [usize; Risk::ALL.len()],
    /// The rows that ka would know more about with more rights.
    incomplete: usize,
}

impl Totals {
    /// Counts these rows.
    pub fn of<'a>(rows: impl IntoIterator<Item = &'a SocketRow<'a>>) -> Self {
        let mut totals = Self::default();
        for row in rows {
            totals.add(row);
        }
        totals
    }

    /// Counts a row.
    pub fn add(&mut self, row: &SocketRow<'_>) {
        self.listed.add(row.keepalive);
        self.incomplete += usize::from(row.is_incomplete());
        for (count, risk) in self.risks.iter_mut().zip(Risk::ALL) {
            *count += usize::from(row.risks.contains(&risk));
        }
    }

    /// Formats the numbers in one line. If the rows are filtered, counts the listed and the other sockets separately.
    pub fn line(&self, all: &Counts, is_filtered: bool) -> String {
        let Self { listed, risks, .. } = self;
        let mut line = if is_filtered {
            let words = listed.words();
            let colon = if words.is_empty() { "" } else { ": " };
            format!("{} of {} listed{colon}{words}", listed.all(), count(all.all(), "socket"))
        } else {
            let unknown = if all.unknown > 0 { format!(", {} unknown", all.unknown) } else { String::new() };
            format!("{}: {} on, {} off{unknown}", count(all.all(), "socket"), all.on, all.off)
        };
        for (count, risk) in risks.iter().zip(Risk::ALL).filter(|(_, risk)| *risk != Risk::Off) {
            if *count > 0 {
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

    /// Returns a message if ka lacks the rights to know all about the rows.
    pub fn lacks_rights(&self) -> Option<String> {
        let of = count(self.incomplete, "socket");
        (self.incomplete > 0).then(|| {
            format!("the process or the settings of {of} are unknown: run ka as root (needs CAP_SYS_PTRACE)")
        })
    }
}
