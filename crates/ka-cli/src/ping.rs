//! `ka ping`: shows which TCP connections are alive now ([`ka_reach::ping`]).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::io::{self, BufWriter, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use ka_reach::attach::{NamedProcess, Processes, Report};
use ka_reach::escape::{lossless, visible};
use ka_reach::ping::{Destroy, Destroyed, Ping, PingRequest, PingResult, PingedConnection, Progress};
use ka_reach::reason::reason;
use ka_reach::signal;
use serde::Serialize;

use crate::args;
use crate::attach::{print_message, user};
use crate::failure::{CommandResult, FOUND, Failure, UNKNOWN, USAGE, warn};
use crate::json;
use crate::plural::count;
use crate::progress_line::ProgressLine;
use crate::table::{self, Cell, Column, Layout, Paint};

pub(crate) fn ping(args: &args::PingArgs) -> CommandResult {
    let failure = |why: &dyn Display| Failure::new(format_args!("ping: {why}"));
    let user = args.user.as_deref().map(|name| user("ping", name)).transpose()?;
    let pids = [&*args.pids, &*args.pid].concat();
    let mut report = Report::default();
    let processes = if pids.is_empty() {
        Processes::All { user, skip: Vec::new() }
    } else {
        Processes::Named(NamedProcess::open_all(pids, false, &mut report))
    };
    if !report.results.is_empty() {
        let wrong = report
            .results
            .iter()
            .filter_map(|result| Some(format!("process {}: {}", result.pid?, result.error.as_ref()?)));
        return Err(failure(&wrong.collect::<Vec<_>>().join("; ")));
    }
    let request = PingRequest {
        timeout: Duration::from_millis(args.timeout.into()),
        count: args.count,
        destroy: match (args.destroy, args.dry_run) {
            (false, _) => Destroy::Never,
            (true, true) => Destroy::DryRun,
            (true, false) => Destroy::Silent,
        },
    };
    let termination = signal::termination_or_hangup().map_err(|error| failure(&reason(&error)))?;
    let mut ping = Ping::new(request, processes, report);
    ping.port = args.port;
    ping.termination = Some(termination.as_fd());
    let (mut line, began) = (ProgressLine::new(), Instant::now());
    let result = ping.run(|progress| {
        line.show(&progress_text(progress, request.timeout.saturating_sub(began.elapsed())));
    });
    line.clear();
    result.map_err(|error| failure(&format_args!("--destroy: {error}")))?;
    print(args.json, &mut ping)?;
    Ok(status(&ping))
}

/// Prints the results.
fn print(is_json: bool, ping: &mut Ping<'_>) -> io::Result<()> {
    ping.connections.sort_by_key(|connection| (connection.pid, connection.fd));
    let mut out = BufWriter::new(io::stdout().lock());
    if is_json {
        let rows = ping.connections.iter().map(PingRow::from);
        let processes = ping.report.results.iter().filter_map(|result| {
            Some(PingRow {
                pid: result.pid?,
                fd: result.fd,
                comm: result.comm.as_deref().map(Cow::from),
                local: None,
                peer: None,
                result: "skipped",
                rtt_ms: None,
                error: result.error.as_ref().map(ToString::to_string),
            })
        });
        json::write_rows(&mut out, rows.chain(processes))?;
    } else {
        if !ping.connections.is_empty() {
            write_table(&mut out, &ping.connections)?;
            writeln!(out)?;
        }
        writeln!(out, "{}", footer(ping))?;
    }
    out.flush()?;
    let mut reasons: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for result in &ping.report.results {
        if let (Some(pid), Some(error)) = (result.pid, &result.error) {
            let comm = visible(result.comm.as_deref().unwrap_or("?").as_bytes());
            reasons.entry(error.to_string()).or_default().push(format!("{pid} ({comm})"));
        }
    }
    for (reason, processes) in reasons {
        print_message("ping", processes, &reason);
    }
    let Report { not_asked, not_examined, .. } = ping.report;
    for (left, what) in [(not_asked, "socket"), (not_examined, "process")] {
        if left > 0 {
            warn(format_args!("ping: {} not examined, because a signal came", count(left, what)));
        }
    }
    Ok(())
}

/// Returns the exit status. A monitor must not mistake connections that ka could not judge for alive ones.
fn status(ping: &Ping<'_>) -> i32 {
    let is_down = |result: &PingResult| matches!(result, PingResult::Silent { .. } | PingResult::Dead(_));
    let is_unknown = |result: &PingResult| matches!(result, PingResult::Skipped(_));
    let any = |is: fn(&PingResult) -> bool| ping.connections.iter().any(|connection| is(&connection.result));
    let Report { not_asked, not_examined, results, .. } = &ping.report;
    if any(is_down) {
        FOUND
    } else if ping.connections.is_empty() && !results.is_empty() {
        USAGE
    } else if any(is_unknown) || !results.is_empty() || not_asked + not_examined > 0 {
        UNKNOWN
    } else {
        0
    }
}

/// A row of the table, or an object of the JSON array.
#[derive(Serialize)]
struct PingRow<'a> {
    pid: i32,
    fd: Option<i32>,
    comm: Option<Cow<'a, str>>,
    local: Option<SocketAddr>,
    peer: Option<SocketAddr>,
    result: &'static str,
    rtt_ms: Option<f64>,
    error: Option<String>,
}

impl<'a> From<&'a PingedConnection> for PingRow<'a> {
    fn from(connection: &'a PingedConnection) -> Self {
        let PingedConnection { pid, fd, comm, local, peer, result, .. } = connection;
        Self {
            pid: *pid,
            fd: Some(*fd),
            comm: comm.as_deref().map(lossless),
            local: *local,
            peer: *peer,
            result: match result {
                PingResult::Answered { .. } => "answered",
                PingResult::Silent { .. } => "silent",
                PingResult::Dead(_) => "dead",
                PingResult::Skipped(_) | PingResult::Gone => "skipped",
            },
            rtt_ms: match result {
                PingResult::Answered { rtt_us } => Some(f64::from(*rtt_us) / 1000.0),
                _ => None,
            },
            error: error(result),
        }
    }
}

/// Describes the result for a connection: in one word, and in a sentence.
pub(crate) fn describe(connection: &PingedConnection, timeout: Duration) -> (String, String) {
    let PingRow { result, rtt_ms, error, .. } = PingRow::from(connection);
    match (rtt_ms, error) {
        (Some(rtt), _) => (format!("{rtt:.1}ms"), format!("{result} after {rtt:.1} ms")),
        (None, Some(error)) => (result.to_owned(), format!("{result}: {error}")),
        (None, None) if matches!(connection.result, PingResult::Silent { .. }) => {
            (result.to_owned(), format!("{result}: no answer within {timeout:?}"))
        }
        (None, None) => (result.to_owned(), format!("{result}: the process has closed the socket")),
    }
}

/// Returns the text that explains a result. `None` if its name says all.
fn error(result: &PingResult) -> Option<String> {
    match result {
        PingResult::Answered { .. } | PingResult::Gone => None,
        PingResult::Silent { in_flight, destroyed } => {
            let destroyed = match destroyed {
                None => None,
                Some(Destroyed::Done) => Some(
                    "destroyed: the next read or write of the program fails with ECONNABORTED".to_owned(),
                ),
                Some(Destroyed::Planned) => Some(
                    "would be destroyed: the next read or write of the program would fail with ECONNABORTED"
                        .to_owned(),
                ),
                Some(Destroyed::Not(error)) => Some(format!("not destroyed: {error}")),
            };
            let in_flight = in_flight.then(|| "data in flight is not acknowledged".to_owned());
            let parts: Vec<_> = destroyed.into_iter().chain(in_flight).collect();
            (!parts.is_empty()).then(|| parts.join("; "))
        }
        PingResult::Dead(Some(errno)) => Some(reason(&io::Error::from_raw_os_error(*errno))),
        PingResult::Dead(None) => Some("it has ended, and the program has already read the error".to_owned()),
        PingResult::Skipped(error) => Some(error.to_string()),
    }
}

fn write_table(out: &mut impl Write, connections: &[PingedConnection]) -> io::Result<()> {
    const COLUMNS: [Column; 7] = [
        Column::elastic("PROCESS", 23).keeping('/').down_to(12),
        Column::right("FD").droppable(2),
        Column::elastic("LOCAL", 21).keeping(':').down_to(15),
        Column::elastic("PEER", 21).keeping(':').down_to(15),
        Column::left("RESULT"),
        Column::right("RTT").droppable(1),
        Column::left("NOTE"),
    ];
    let rows: Vec<_> = connections.iter().map(cells).collect();
    table::write(out, Layout::standard(), &COLUMNS, &rows)
}

fn cells(connection: &PingedConnection) -> Vec<Cell> {
    let row = PingRow::from(connection);
    let end = |end: Option<SocketAddr>| end.map_or_else(|| "-".into(), |end| end.to_string().into());
    let paint = match connection.result {
        PingResult::Answered { .. } => Paint::Good,
        PingResult::Silent { .. } | PingResult::Dead(_) => Paint::Bad,
        PingResult::Skipped(_) | PingResult::Gone => Paint::Warning,
    };
    vec![
        table::holder(connection.comm.as_deref(), row.pid, connection.others.len()).into(),
        connection.fd.to_string().into(),
        end(row.local),
        end(row.peer),
        Cell::painted(row.result, paint),
        row.rtt_ms.map_or_else(|| "-".into(), |rtt| format!("{rtt:.1}ms").into()),
        visible(row.error.unwrap_or_default().as_bytes()).into_owned().into(),
    ]
}

/// Returns the line below the table.
fn footer(ping: &Ping<'_>) -> String {
    let number = |is: fn(&PingResult) -> bool| {
        ping.connections.iter().filter(|connection| is(&connection.result)).count()
    };
    let counts = [
        (number(|result| matches!(result, PingResult::Answered { .. })), "answered"),
        (number(|result| matches!(result, PingResult::Silent { .. })), "silent"),
        (number(|result| matches!(result, PingResult::Dead(_))), "dead"),
        (number(|result| matches!(result, PingResult::Skipped(_))), "skipped"),
    ];
    let counts = counts.map(|(number, what)| format!("{number} {what}")).join(", ");
    let destroyed = [
        (
            number(|result| matches!(result, PingResult::Silent { destroyed: Some(Destroyed::Done), .. })),
            "destroyed",
        ),
        (
            number(|result| matches!(result, PingResult::Silent { destroyed: Some(Destroyed::Planned), .. })),
            "would be destroyed",
        ),
    ];
    let mut line = format!("{}: {counts}", count(ping.connections.len(), "connection"));
    for (number, what) in destroyed.into_iter().filter(|(number, _)| *number > 0) {
        let _ = write!(line, "; {number} {what}");
    }
    line
}

/// Describes the progress. `rest` is the rest of the timeout.
fn progress_text(progress: Progress, rest: Duration) -> String {
    let Progress { answered, silent, left } = progress;
    format!("{answered} answered, {silent} silent, {left} left, {:.1} s", rest.as_secs_f64())
}
