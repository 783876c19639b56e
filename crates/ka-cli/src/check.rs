//! `ka check`: what reaches a program or a process, what does not and why, and what to type.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, BufWriter, Write};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;

use ka_core::SockOpt;
use serde::Serialize;

use crate::args;
use crate::attach;
use crate::bpf::{self, host};
use crate::cgroup;
use crate::elf::Elf;
use crate::failure::{FOUND, Failure, Outcome};
use crate::json;
use crate::libraries::Linked;
use crate::privilege;
use crate::process::{self, OVER_BUDGET, Process, Target};
use crate::program::{self, Program};
use crate::text;
use crate::via::{self, Launch, Reach};
use crate::words;
use crate::worker::{self, Answer, BLOCKED, Cell, Ended, Workers};
use crate::wrapper::{self, Client};

pub(crate) fn check(args: &args::Check) -> Outcome {
    let number = |target: &OsStr| {
        target.to_str().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?.parse().ok()
    };
    let report = match &args.target {
        None => machine_report(),
        Some(target) => match number(target) {
            Some(pid) => process_report(pid)?,
            None => program_report(target)?,
        },
    };
    let mut out = BufWriter::new(io::stdout().lock());
    if args.json {
        json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        report.write(&mut out)?;
    }
    out.flush()?;
    Ok(if report.is_reached { 0 } else { FOUND })
}

/// What was found out.
#[derive(Serialize)]
struct Report {
    target: String,
    /// What it is, a fact each.
    facts: Vec<String>,
    /// What reaches it comes first.
    ways: Vec<Line>,
    /// Whether ka run or ka attach reaches it without being told how.
    #[serde(skip)]
    is_reached: bool,
    /// What to type; nothing where no program or process is named.
    command: Option<String>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    over: Option<Over>,
}

/// What is over a process.
#[derive(Serialize)]
struct Over {
    /// The supervisor of `ka run --via seccomp`.
    supervisor: Option<i32>,
    /// The policies of its cgroup and of those above it, its own first. `None` where they cannot be found out.
    cgroups: Option<Vec<cgroup::InForce>>,
}

/// What there is to say of a way.
#[derive(Serialize)]
struct Line {
    way: &'static str,
    reaches: bool,
    why: String,
}

impl Report {
    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "{}", text::visible(self.target.as_bytes()))?;
        for fact in &self.facts {
            writeln!(out, "  {}", text::visible(fact.as_bytes()))?;
        }
        for Line { way, reaches, why } in &self.ways {
            let answer = if *reaches { "yes" } else { "no" };
            writeln!(out, "{way:<8} {answer:<4} {}", text::visible(why.as_bytes()))?;
        }
        if let Some(command) = &self.command {
            writeln!(out, "type     {}", text::visible(command.as_bytes()))?;
        }
        Ok(())
    }
}

/// A word for the shell: quoted where it must be.
pub(crate) fn quoted(word: &OsStr) -> String {
    let text = text::lossless(word.as_encoded_bytes()).into_owned();
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "_-./+:@%,=".contains(letter);
    if !text.is_empty() && text.chars().all(is_plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

/// What this machine allows who asks: a way each, and what it lacks.
fn machine_report() -> Report {
    let way = |way, obstacle: Option<String>, how: &str| Line {
        way,
        reaches: obstacle.is_none(),
        why: obstacle.unwrap_or_else(|| how.to_owned()),
    };
    let cgroup = match host::lacks_bpf_folder() {
        None => "ka cgroup, ka run --via cgroup: all that runs in a cgroup, by eBPF".to_owned(),
        Some(lack) => format!(
            "ka run --via cgroup, ka cgroup attach --foreground: all that runs in a cgroup, by eBPF. To keep a policy \
             without --foreground: {lack}"
        ),
    };
    let ways = vec![
        way("preload", via::preload_obstacle(), "ka run: programs that the dynamic loader starts"),
        way(
            "seccomp",
            via::seccomp_obstacle(),
            "ka run --via seccomp: all programs, and all that they start, by a supervisor",
        ),
        way("attach", privilege::obstacle(), "ka attach: the sockets of running processes"),
        way("cgroup", bpf::cgroup_obstacle(), &cgroup),
        way(
            "bpf",
            bpf::iterator_obstacle(),
            "ka attach --via bpf, ka ls: every socket of a network namespace, by eBPF",
        ),
    ];
    let (major, minor) = host::release();
    let there = |is_there: bool| if is_there { "yes" } else { "no" };
    let cgroups =
        host::cgroup_root().map_or_else(|| "not mounted".to_owned(), |path| path.display().to_string());
    let scope = privilege::ptrace_scope().map_or_else(|| "not there".to_owned(), |scope| scope.to_string());
    let facts = vec![
        format!("Linux {major}.{minor}; its types (BTF): {}", there(host::has_types())),
        format!("cgroup v2: {cgroups}; bpffs: {}", there(host::lacks_bpf_folder().is_none())),
        format!("Yama's ptrace_scope: {scope}"),
        host::lacks(&host::FOR_SOCKETS)
            .unwrap_or_else(|| "CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN are there".to_owned()),
    ];
    let is_reached = ways.iter().all(|way| way.reaches);
    Report { target: "this machine".to_owned(), facts, ways, is_reached, command: None, over: None }
}

fn program_report(name: &OsStr) -> Result<Report, Failure> {
    let arguments = [name.to_owned()];
    let program = Program::with(&arguments).map_err(|failure| {
        let message = format!("check: {}", failure.message);
        Failure { message, ..failure }
    })?;
    let launch = Launch {
        program: &program,
        arguments: &arguments,
        said: None,
        is_whole: false,
        mode: None,
        verbose: false,
        best_effort: false,
        no_io_uring: false,
    };
    let mut command = None;
    let mut is_reached = false;
    let mut ways = Vec::new();
    for way in via::ALL {
        let (reaches, why) = match way.reach(&launch) {
            Reach::Yes(how) => {
                is_reached |= way.is_automatic();
                let via = if way.is_automatic() { String::new() } else { format!("--via {} ", way.name()) };
                command.get_or_insert_with(|| format!("ka run {via}-- {}", quoted(name)));
                (true, how)
            }
            Reach::No { why, .. } | Reach::Wrong { why, .. } => (false, why),
        };
        ways.push(Line { way: way.name(), reaches, why });
    }
    ways.sort_by_key(|line| !line.reaches);
    let obstacle = program
        .secure
        .filter(|_| !privilege::may_look_anywhere())
        .map_or_else(privilege::obstacle, |secure| {
            Some(format!("{secure}: needs CAP_SYS_PTRACE (run ka as root), once it runs"))
        });
    let sudo = if obstacle.is_some() { "sudo " } else { "" };
    // `sudo ka attach` cannot find the program by the PID of sudo.
    let command = command.unwrap_or_else(|| match program.name() {
        wrapper if wrapper::changes_user(wrapper) => format!("{} ka run -- PROGRAM", quoted(name)),
        _ => format!("{} & {sudo}ka attach --follow $!", quoted(name)),
    });
    ways.push(Line {
        way: "attach",
        reaches: obstacle.is_none(),
        why: obstacle.unwrap_or_else(|| {
            "once it runs: the sockets that it has; with --follow those that it opens later, within a second"
                .to_owned()
        }),
    });
    Ok(Report {
        target: program.path.display().to_string(),
        facts: program_facts(&program),
        ways,
        is_reached,
        command: Some(command),
        over: None,
    })
}

fn program_facts(program: &Program) -> Vec<String> {
    let mut facts = Vec::new();
    if program.path != program.executable {
        facts.push(format!("a script, which {} runs", program.executable.display()));
    }
    match &program.elf {
        None => facts.push("no ELF program, or one that may not be read".to_owned()),
        Some(elf) => {
            let loader =
                elf.loader.as_deref().map(|loader| format!(", its loader is {}", text::lossless(loader)));
            let kind = match (&loader, elf.is_position_independent) {
                (Some(_), _) => "dynamic",
                (None, _) if elf.is_loader() => "a dynamic loader",
                (None, true) => "static-pie",
                (None, false) => "static",
            };
            facts.push(format!("{}, {kind}{}", elf.machine_name(), loader.unwrap_or_default()));
            if elf.is_go {
                facts.push("made by Go, which turns keepalive on by itself: 15 s and 15 s, unless it is told otherwise".to_owned());
            }
            if elf.needed.iter().any(|name| name.starts_with(b"liburing.so")) {
                facts.push(
                    "linked to liburing: what it does through io_uring passes the C library by".to_owned(),
                );
            }
            if kind == "dynamic" && !elf.is_go {
                facts.extend(linked_facts(&program.executable, elf));
            }
        }
    }
    facts.extend(wrapper::fact(program.name()));
    facts.extend(Client::named(program.name()).map(Client::text));
    let marks = program::marks(&program.executable);
    match program.secure {
        None if !marks.is_empty() => {
            facts.extend(marks);
            facts.push("a user who has fewer rights than it is not reached by preload or attach".to_owned());
        }
        Some(secure) if !marks.iter().any(|mark| mark.starts_with(secure)) => {
            facts.extend(marks);
            facts.push(secure.to_owned());
        }
        _ => facts.extend(marks),
    }
    facts
}

/// Describes the properties of a program's libraries that decide which of its sockets preload reaches.
fn linked_facts(path: &Path, elf: &Elf) -> Vec<String> {
    let linked = Linked::find(path, elf);
    let mut facts = Vec::new();
    if let Some((library, user)) = &linked.unread {
        facts.push(format!(
            "{library}, which {} is linked to, is not found or cannot be read: whether preload sees all sockets is unknown",
            user.display()
        ));
    }
    if let Some(library) = linked.go_library() {
        facts.push(format!(
            "linked to {}, which was made by Go: preload does not see its sockets",
            library.display()
        ));
    }
    let imports = linked.imports_sockets();
    match linked.calls_sockets() {
        Ok(Some(file)) if imports != Some(false) || linked.unread.is_some() => facts.push(format!(
            "{} also has system-call instructions of its own for sockets, which preload does not see: \
             ka run --via seccomp reaches those too",
            file.display()
        )),
        Ok(_) => {}
        Err(error) => facts.push(format!("its code cannot be read: {error}")),
    }
    if imports.is_none() {
        facts.push(
            "its symbols, or a library's, cannot be read: whether preload sees its sockets is unknown"
                .to_owned(),
        );
    }
    facts
}

/// Why a way that starts programs does not reach a process.
const RUNS: &str = "it is running already: ka run starts programs";

fn process_report(pid: i32) -> Result<Report, Failure> {
    let refused =
        |error: &io::Error| Failure::new(format_args!("check: {pid}: {}", privilege::explain(pid, error)));
    let process = Process::open(pid).map_err(|error| refused(&error))?;
    let name = process.name();
    let mut facts = Vec::new();
    let mut workers = Workers::default();
    let mut is_whole = true;
    let Mapped { is_preloaded, copies } = mapped(pid, &mut workers).unwrap_or_else(|why| {
        facts.push(why);
        is_whole = false;
        Mapped::default()
    });
    if is_preloaded {
        facts.push("libka_preload.so is in it".to_owned());
        if copies > 1 {
            facts.push(format!(
                "{copies} copies of the C library are in it, as dlmopen(3) makes them: libka_preload.so may see the calls \
                 of one only"
            ));
        }
    }
    let mut missed = false;
    let attach = match sockets(&process, &mut workers) {
        Ok(Sockets { tcp, off, rings, left }) => {
            facts.push(format!("{tcp} TCP sockets, {} of them without keepalive", off.len()));
            if is_preloaded && !off.is_empty() {
                missed = true;
                facts.extend(missed_facts(pid, &off));
            }
            is_whole &= left.is_empty();
            facts.extend(left);
            if rings {
                facts.push("it uses io_uring".to_owned());
            }
            Line {
                way: "attach",
                reaches: true,
                why: "the sockets that it has; with --follow those that it opens later, within a second"
                    .to_owned(),
            }
        }
        Err(error) => Line { way: "attach", reaches: false, why: privilege::explain(pid, &error) },
    };
    let preload = Line {
        way: "preload",
        reaches: is_preloaded,
        why: if is_preloaded { "it was started with it" } else { RUNS }.to_owned(),
    };
    let supervisor = via::supervisor_of(pid);
    let seccomp = Line {
        way: "seccomp",
        reaches: supervisor.is_some(),
        why: supervisor.map_or_else(|| RUNS.to_owned(), |pid| format!("it is under the supervisor {pid}")),
    };
    let policies = cgroup::policies_of(pid);
    let cgroup = Line {
        way: "cgroup",
        reaches: policies.as_ref().is_ok_and(|policies| !policies.is_empty()),
        why: cgroup_why(pid, &policies),
    };
    let is_under = preload.reaches || seccomp.reaches || cgroup.reaches;
    let command = match (is_under, attach.reaches) {
        _ if missed => format!("ka attach {pid}"),
        (true, _) => format!("nothing: it is under ka already (ka ls --pid {pid})"),
        (false, true) => format!("ka attach --follow {pid}"),
        (false, false) => format!("sudo ka attach --follow {pid}"),
    };
    let command = Some(command);
    let mut ways = vec![preload, seccomp, cgroup, attach];
    ways.sort_by_key(|way| !way.reaches);
    // If libraries or sockets were missed, the program is not reached.
    let is_reached = is_whole && !missed && ways.first().is_some_and(|way| way.reaches);
    let over = Some(Over { supervisor, cgroups: policies.ok() });
    Ok(Report { target: format!("{pid} ({name})"), facts, ways, is_reached, command, over })
}

/// What there is to say of the policies of a process's cgroups.
fn cgroup_why(pid: i32, policies: &Result<Vec<cgroup::InForce>, String>) -> String {
    match policies.as_deref() {
        Ok([]) => {
            let own = host::cgroup_of(&pid.to_string()).unwrap_or_default();
            format!("no cgroup that it is in has a policy: ka cgroup attach {}", quoted(own.as_os_str()))
        }
        Ok(policies) => {
            let each =
                policies.iter().map(|one| format!("{}: {}, mode {}", one.cgroup, one.policy, one.mode));
            each.collect::<Vec<_>>().join("; ")
        }
        Err(why) => why.clone(),
    }
}

/// Returns whether a line of /proc/PID/maps is the first mapping of a C library. Each copy has one such line.
fn is_c_library(line: &[u8]) -> bool {
    const NAMES: [&[u8]; 3] = [b"libc.so", b"libc-2.", b"ld-musl-"];
    let offset = line.split(|byte| *byte == b' ').nth(2);
    let name = line.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    offset.is_some_and(|offset| offset.iter().all(|digit| *digit == b'0'))
        && NAMES.iter().any(|libc| name.starts_with(libc))
}

/// Lists the sockets that have no keepalive although the shim is in the process, and possible reasons.
fn missed_facts(pid: i32, off: &[(i32, String)]) -> Vec<String> {
    const MOST: usize = 20;
    const REASONS: [&[u8]; 4] = [b"KA_POLICY=", b"KA_MODE=", b"KA_RULES=", b"KA_SKIP="];
    let mut facts: Vec<_> =
        off.iter().take(MOST).map(|(fd, ends)| format!("without keepalive: fd {fd}, {ends}")).collect();
    if let Some(more) = off.len().checked_sub(MOST).filter(|more| *more > 0) {
        facts.push(format!("and {more} more: ka ls --off --pid {pid}"));
    }
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let is_reason = |entry: &&[u8]| REASONS.iter().any(|name| entry.starts_with(name));
    for entry in environment.split(|byte| *byte == 0).filter(is_reason) {
        facts.push(format!("{} in its environment may exclude them", text::lossless(entry)));
    }
    facts
}

struct Sockets {
    tcp: usize,
    /// The sockets without keepalive: descriptor and addresses.
    off: Vec<(i32, String)>,
    rings: bool,
    /// Reasons why sockets were left out.
    left: Vec<String>,
}

/// A worker's answer about a socket, in the lower half of a word: the socket is TCP, its keepalive is off, or the
/// kernel rejected the call. The upper half then has the errno.
const TCP: u64 = 1;
const OFF: u64 = 2;
const REFUSED: u64 = 4;

/// Looks into a process: how many TCP sockets it has, and whether one may look at all.
fn sockets(process: &Process, workers: &mut Workers) -> io::Result<Sockets> {
    let mut found = Sockets { tcp: 0, off: Vec::new(), rings: false, left: Vec::new() };
    let mut inodes = HashSet::new();
    let mut targets = Vec::new();
    let mut refused = None;
    process.each_table(|table| match table {
        Ok((table, sockets)) => {
            found.rings |= table.has_ring();
            let new = sockets.into_iter().filter(|(_, inode)| inodes.insert(*inode));
            targets.extend(new.map(|(fd, inode)| Target { table: table.clone(), fd, inode }));
        }
        Err(error) if error.to_string() == OVER_BUDGET => found.left.push(OVER_BUDGET.to_owned()),
        Err(error) => refused = Some(error),
    })?;
    if let Some(error) = refused {
        return Err(error);
    }
    let answers = workers.ask(&targets, None, None, |_, target, cell| look(target, cell));
    for (place, (target, answer)) in targets.iter().zip(answers.each).enumerate() {
        let blocked = || format!("its socket fd {} {BLOCKED}", target.fd);
        let left = match answer {
            Answer::Given([kind, ..]) if kind & REFUSED != 0 => {
                return Err(io::Error::from_raw_os_error(i32::try_from(kind >> 32).unwrap_or(libc::EIO)));
            }
            Answer::Given(record) => {
                let [kind] = words::part(&record, 0);
                found.tcp += usize::from(kind & TCP != 0);
                if kind & OFF != 0 {
                    let ends =
                        (words::address(words::part(&record, 1)), words::address(words::part(&record, 4)));
                    found.off.push((target.fd, attach::arrow(ends)));
                }
                if !answers.cut_short.contains(&place) {
                    continue;
                }
                blocked()
            }
            Answer::Failed(why) => format!("its socket fd {}: {why}", target.fd),
            Answer::Blocked => blocked(),
            Answer::Classed(why) => return Err(io::Error::other(why)),
            Answer::Excluded(user) => worker::excluded(user),
            Answer::NotAsked => continue,
        };
        if !found.left.contains(&left) {
            found.left.push(left);
        }
    }
    // Without a socket nothing has been asked that may be refused: one that is no socket answers as well.
    if inodes.is_empty() {
        process::probe(process)?;
    }
    Ok(found)
}

/// Reads a socket's keepalive, in a worker.
fn look(target: &Target, cell: &Cell<'_>) {
    let answer = |kind| cell.answer(words::together(&[&[kind]]));
    let refused = |errno: i32| answer(REFUSED | u64::from(errno.unsigned_abs()) << 32);
    let socket = match target.table.duplicate(target.fd) {
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => return answer(0),
        Err(error) => return refused(error.raw_os_error().unwrap_or(libc::EIO)),
        Ok(socket) => socket,
    };
    match ka_core::Socket::new(socket.as_raw_fd()).is_enabled() {
        Ok(true) => answer(TCP),
        Ok(false) => {
            // Reading the addresses takes the socket's lock. If that blocks, this answer remains.
            answer(TCP | OFF);
            let (local, peer) = attach::ends(socket.as_fd());
            cell.answer(words::together(&[
                &[TCP | OFF],
                &words::of_address(local),
                &words::of_address(peer),
            ]));
        }
        Err(ka_core::Error::System { option: SockOpt::Protocol, .. } | ka_core::Error::NotTcp) => answer(0),
        Err(error) => refused(error.errno().0),
    }
}

/// Mappings of a process that matter to preload.
#[derive(Default)]
struct Mapped {
    is_preloaded: bool,
    /// The number of copies of the C library.
    copies: usize,
}

/// Reads a process's memory maps. The kernel may block on the process here, so a worker reads them. It reads line by
/// line, because there may be very many.
fn mapped(pid: i32, workers: &mut Workers) -> Result<Mapped, String> {
    const SHIM: u8 = b's';
    const C_LIBRARY: u8 = b'c';
    let found = workers.find(&[], |sink| {
        let Ok(maps) = File::open(format!("/proc/{pid}/maps")) else { return Ok(()) };
        let mut maps = BufReader::new(maps);
        let mut line = Vec::new();
        let mut has_shim = false;
        loop {
            line.clear();
            match maps.read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return Ok(()),
                Ok(_) => {}
            }
            let kind = if !has_shim && line.ends_with(b"/libka_preload.so\n") {
                has_shim = true;
                SHIM
            } else if is_c_library(&line) {
                C_LIBRARY
            } else {
                continue;
            };
            sink.write_all(&[kind]).map_err(|error| error.to_string())?;
        }
    });
    match found.end {
        Ended::Whole => Ok(Mapped {
            is_preloaded: found.data.contains(&SHIM),
            copies: found.data.iter().map(|kind| usize::from(*kind == C_LIBRARY)).sum(),
        }),
        Ended::Blocked => Err("its memory maps did not answer within 2 s".to_owned()),
        Ended::Failed(why) => Err(format!("its memory maps: {why}")),
    }
}
