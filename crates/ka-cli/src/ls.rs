//! `ka ls`: lists TCP sockets with their processes and keepalive settings.

use std::fmt::Display;
use std::io::{self, BufWriter, Write};

use crate::args;
use crate::failure::{CommandResult, FOUND, Failure, UNKNOWN, warn};
use crate::json;
use crate::plural::count;
use crate::socket_row::{COLUMNS, Counts, SocketRow, Totals};
use crate::table::{self, Layout};
use ka_reach::diag::State;
use ka_reach::listing::{Selection, sockets};
use ka_reach::netns::{self, Namespace};
use ka_reach::worker::Workers;
use ka_reach::{limits, privilege, process, reason::reason};

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
        writeln!(out, "{}", Totals::of(&rows).line(&all, args.off || args.risk))?;
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
    Ok((netns::to_list(pids), Vec::new()))
}

fn write_table(out: &mut impl Write, rows: &[SocketRow<'_>], has_netns: bool) -> io::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let from = usize::from(!has_netns);
    let rows: Vec<_> = rows.iter().map(|row| row.cells().split_off(from)).collect();
    table::write(out, Layout::standard(), COLUMNS.get(from..).unwrap_or_default(), &rows)?;
    writeln!(out)
}

/// Returns the reason why the process or the settings are missing in some rows, and what to do.
fn hint(rows: &[SocketRow<'_>], off: bool) -> Option<String> {
    if !privilege::may_look_anywhere() {
        return Totals::of(rows).lacks_rights();
    }
    let unknown = rows.iter().filter(|row| row.keepalive.is_none()).count();
    let of = count(unknown, "socket");
    (off && unknown > 0)
        .then(|| format!("keepalive of {of} is unknown: ka could not read it through a process or by eBPF"))
}
