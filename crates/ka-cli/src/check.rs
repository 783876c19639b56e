//! `ka check`: what reaches a program or a process, what does not and why, and what to type.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io::{self, BufWriter, Read as _, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;

use ka_core::{Config, SockOpt};
use ka_policy::{Action, Endpoint, Mode, Rule, Rules};
use serde::Serialize;
use socket2::SockRef;

use crate::args;
use crate::failure::{FOUND, Failure, Outcome};
use crate::json;
use crate::program::{self, Program};
use crate::via::{self, Flags, Launch, Reach};
use crate::wrapper::{self, Client};
use ka_reach::bpf::{self, host};
use ka_reach::conf::{self, Given};
use ka_reach::elf::Elf;
use ka_reach::file;
use ka_reach::libraries::Linked;
use ka_reach::policies::{self, Mapped, Other};
use ka_reach::privilege;
use ka_reach::process::{self, OVER_BUDGET, Process, Status, Target};
use ka_reach::text;
use ka_reach::words;
use ka_reach::worker::{self, Answer, BLOCKED, Cell, Workers};

pub(crate) fn check(args: &args::Check) -> Outcome {
    let digits = |target: &OsStr| {
        let is_number = |text: &&str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        target.to_str().filter(is_number).map(str::to_owned)
    };
    let report = match &args.target {
        None => machine_report(),
        Some(target) => match digits(target) {
            Some(text) => {
                let wrong = |why| Failure::new(format_args!("check: {text}: {why}"));
                process_report(process::number(&text).map_err(wrong)?)?
            }
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
    cgroups: Option<Vec<ka_reach::cgroup::InForce>>,
}

/// What there is to say of a way.
#[derive(Serialize)]
struct Line {
    way: &'static str,
    /// `None` if unknown.
    reaches: Option<bool>,
    why: String,
}

impl Report {
    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "{}", text::visible(self.target.as_bytes()))?;
        for fact in &self.facts {
            writeln!(out, "  {}", text::visible(fact.as_bytes()))?;
        }
        for Line { way, reaches, why } in &self.ways {
            let answer = match reaches {
                Some(true) => "yes",
                Some(false) => "no",
                None => "unknown",
            };
            writeln!(out, "{way:<8} {answer:<7} {}", text::visible(why.as_bytes()))?;
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
        reaches: Some(obstacle.is_none()),
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
        via::listed().map_or_else(
            || "/etc/ld.so.preload does not list libka_preload.so".to_owned(),
            |path| {
                if !path.exists() {
                    return format!("/etc/ld.so.preload lists {}, which does not exist", path.display());
                }
                let Given { config, mode, .. } = conf::given(b"");
                format!(
                    "/etc/ld.so.preload lists {}: programs that glibc's loader starts get {} (mode {})",
                    path.display(),
                    text::brief(&config),
                    mode.name()
                )
            },
        ),
    ];
    let is_reached = ways.iter().all(|way| way.reaches == Some(true));
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
        flags: Flags::default(),
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
        ways.push(Line { way: way.name(), reaches: Some(reaches), why });
    }
    if let Some(shim) = via::listed_for(&launch) {
        let from =
            if program.secure.is_some() { "/etc/ka.conf" } else { "the KA_ variables and /etc/ka.conf" };
        for line in ways.iter_mut().filter(|line| line.way == "preload") {
            line.reaches = Some(true);
            line.why = format!(
                "/etc/ld.so.preload lists {}: with the policy of {from}, also without ka run",
                shim.display()
            );
        }
        is_reached = true;
        command = Some("nothing: /etc/ld.so.preload gives it the policy".to_owned());
    }
    ways.sort_by_key(|line| line.reaches != Some(true));
    let obstacle = program
        .secure
        .filter(|_| !privilege::may_look_anywhere())
        .map_or_else(privilege::obstacle, |secure| {
            Some(format!("{secure}: needs CAP_SYS_PTRACE (run ka as root), once it runs"))
        });
    // A process whose file its user may not read cannot be examined either. ptrace(2), `PTRACE_MODE_READ`
    let is_unreadable = file::open_regular(&program.executable)
        .is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
    let obstacle = obstacle.or_else(|| {
        let is_closed = is_unreadable && !privilege::may_look_anywhere();
        is_closed
            .then(|| "it may not be read: needs CAP_SYS_PTRACE (run ka as root), once it runs".to_owned())
    });
    let sudo = if obstacle.is_some() { "sudo " } else { "" };
    // `sudo ka attach` cannot find the program by the PID of sudo.
    let command = command.unwrap_or_else(|| match program.name() {
        wrapper if wrapper::changes_user(wrapper) => format!("{} ka run -- PROGRAM", quoted(name)),
        _ => format!("{} & {sudo}ka attach {}--follow $!", quoted(name), named_policy()),
    });
    ways.push(Line {
        way: "attach",
        reaches: Some(obstacle.is_none()),
        why: obstacle.unwrap_or_else(|| {
            "once it runs: the sockets that it has; with --follow those that it opens later, within a second"
                .to_owned()
        }),
    });
    let target = program.path.display().to_string();
    let facts = program_facts(&program, is_unreadable);
    if is_broken(&program) {
        let command = "nothing: the kernel cannot start it".to_owned();
        return Ok(Report {
            target,
            facts,
            ways: Vec::new(),
            is_reached: false,
            command: Some(command),
            over: None,
        });
    }
    Ok(Report { target, facts, ways, is_reached, command: Some(command), over: None })
}

/// Returns whether a program is an ELF file, but not one that can be read as such.
fn is_broken(program: &Program) -> bool {
    let mut start = [0; 4];
    let read = file::open_regular(&program.executable).and_then(|mut file| file.read_exact(&mut start));
    program.elf.is_none() && read.is_ok() && start == *b"\x7fELF"
}

fn program_facts(program: &Program, is_unreadable: bool) -> Vec<String> {
    let mut facts = Vec::new();
    if program.path != program.executable {
        facts.push(format!("a script, which {} runs", program.executable.display()));
    }
    match &program.elf {
        None if is_unreadable => facts.push("you may not read it, so how it is linked is unknown".to_owned()),
        None if is_broken(program) => facts.push("a broken ELF file".to_owned()),
        None => facts.push("not an ELF program".to_owned()),
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
        Err(error) => facts.push(format!("its code cannot be read: {}", text::reason(&error))),
    }
    if imports.is_none() {
        facts.push(
            "its symbols, or a library's, cannot be read: whether preload sees its sockets is unknown"
                .to_owned(),
        );
    }
    facts
}

/// The command to type for a process. `missed` has the policies in force if they have missed sockets.
fn command_for(pid: i32, missed: Option<&[Other]>, is_under: bool, is_reached: bool) -> String {
    if let Some(in_force) = missed {
        let on = in_force.iter().find(|other| other.policy != "off");
        let policy = on.map(|other| text::brief_text(&other.policy));
        let standard = text::brief(&Config::STANDARD);
        let policy = policy.filter(|policy| *policy != standard || !named_policy().is_empty());
        let mode = on.map(|other| other.mode).filter(|mode| *mode != Mode::Force.name());
        let policy = policy.map_or_else(|| named_policy().to_owned(), |policy| format!("-p {policy} "));
        let mode = mode.map_or_else(String::new, |mode| format!("--mode {mode} "));
        return format!("ka attach {policy}{mode}{pid}");
    }
    match (is_under, is_reached) {
        (true, _) => format!("nothing: it is under ka already (ka ls --pid {pid})"),
        (false, true) => format!("ka attach {}--follow {pid}", named_policy()),
        (false, false) if ka_reach::sys::users().1 == 0 => "nothing: ka cannot reach it from here".to_owned(),
        (false, false) => format!("sudo ka attach {}--follow {pid}", named_policy()),
    }
}

/// Flags for a command that refuses to run without a policy, because KA_POLICY is off here.
fn named_policy() -> &'static str {
    if via::is_off_here() { "-p 60,10,6 " } else { "" }
}

/// Why a way that starts programs does not reach a process.
const RUNS: &str = "it is running already: ka run starts programs";

fn process_report(pid: i32) -> Result<Report, Failure> {
    let refused =
        |error: &io::Error| Failure::new(format_args!("check: {pid}: {}", privilege::explain(pid, error)));
    let process = Process::open(pid).map_err(|error| refused(&error))?;
    let name = process.name();
    let has_none = if Status::read(pid).is_ok_and(|status| status.is_ended()) {
        Some((
            "it has ended, and has no sockets: a zombie, whose parent has not waited for it",
            "it has ended",
        ))
    } else {
        process::is_kernel_thread(pid)
            .then_some(("a kernel thread, which has no descriptors", "it has no sockets"))
    };
    if let Some((fact, why)) = has_none {
        return Ok(Report {
            target: format!("{pid} ({name})"),
            facts: vec![fact.to_owned()],
            ways: Vec::new(),
            is_reached: false,
            command: Some(format!("nothing: {why}")),
            over: None,
        });
    }
    let mut facts = Vec::new();
    let mut workers = Workers::default();
    let mut is_whole = true;
    let (mapped, why) = policies::mapped([pid], u64::MAX, &mut workers);
    is_whole &= why.is_none();
    facts.extend(why);
    let mapped = mapped.into_iter().next().unwrap_or_default();
    let Mapped { is_preloaded, copies, .. } = mapped;
    if is_preloaded {
        facts.push("libka_preload.so is in it".to_owned());
        if copies > 1 {
            facts.push(format!(
                "{copies} copies of the C library are in it, as dlmopen(3) makes them: libka_preload.so may see the calls \
                 of one only"
            ));
        }
    }
    let in_force = policies::policies(&mapped);
    let mut missed = false;
    let attach = match sockets(&process, &mut workers) {
        Ok(Sockets { tcp, mut off, rings, left }) => {
            facts.push(format!(
                "{}, {} of them without keepalive",
                text::count(tcp, "TCP socket"),
                off.len()
            ));
            // The other ways set a socket when it connects or listens.
            off.retain(|off| is_preloaded || off.is_listener || off.ends.1.is_some());
            if !in_force.is_empty() && !off.is_empty() {
                missed = true;
                facts.extend(missed_facts(pid, &mapped, &in_force, &off, rings));
            }
            if rings && !missed {
                facts.push("it uses io_uring".to_owned());
            }
            is_whole &= left.is_empty();
            facts.extend(left);
            Line {
                way: "attach",
                reaches: Some(true),
                why: "the sockets that it has; with --follow those that it opens later, within a second"
                    .to_owned(),
            }
        }
        Err(error) => Line { way: "attach", reaches: Some(false), why: privilege::explain(pid, &error) },
    };
    facts.extend(in_force.iter().map(|other| format!("in force: {}", other.text())));
    let (reaches, why) = match (mapped.is_denied, is_preloaded) {
        (true, _) => (None, "ka may not read which libraries are in it: run ka as root"),
        (false, true) => (Some(true), "it was started with it"),
        (false, false) => (Some(false), RUNS),
    };
    let preload = Line { way: "preload", reaches, why: why.to_owned() };
    let supervisor = ka_reach::seccomp::supervisor_of(pid);
    let seccomp = Line {
        way: "seccomp",
        reaches: Some(supervisor.is_some()),
        why: supervisor.map_or_else(|| RUNS.to_owned(), |pid| format!("it is under the supervisor {pid}")),
    };
    let policies = ka_reach::cgroup::policies_of(pid);
    let cgroup = Line {
        way: "cgroup",
        reaches: policies.as_ref().ok().map(|policies| !policies.is_empty()),
        why: cgroup_why(pid, &policies),
    };
    let is_under = [&preload, &seccomp, &cgroup].into_iter().any(|way| way.reaches == Some(true));
    let command = command_for(pid, missed.then_some(&in_force[..]), is_under, attach.reaches == Some(true));
    let command = Some(command);
    let mut ways = vec![preload, seccomp, cgroup, attach];
    ways.sort_by_key(|way| way.reaches != Some(true));
    // If libraries or sockets were missed, the program is not reached.
    let is_reached = is_whole && !missed && ways.first().is_some_and(|way| way.reaches == Some(true));
    let over = Some(Over { supervisor, cgroups: policies.ok() });
    Ok(Report { target: format!("{pid} ({name})"), facts, ways, is_reached, command, over })
}

/// What there is to say of the policies of a process's cgroups.
fn cgroup_why(pid: i32, policies: &Result<Vec<ka_reach::cgroup::InForce>, String>) -> String {
    match policies.as_deref() {
        Ok([]) => {
            let own = host::cgroup_of(&pid.to_string()).unwrap_or_default();
            if ka_reach::cgroup::is_root(&own) {
                "it is in the root cgroup, whose policy would apply to all programs of this machine"
                    .to_owned()
            } else {
                format!("no cgroup that it is in has a policy: ka cgroup attach {}", quoted(own.as_os_str()))
            }
        }
        Ok(policies) => {
            let each =
                policies.iter().map(|one| format!("{}: {}, mode {}", one.cgroup, one.policy, one.mode));
            each.collect::<Vec<_>>().join("; ")
        }
        Err(why) => why.clone(),
    }
}

/// Lists the sockets that have no keepalive although a policy is in force in the process, and the reasons.
fn missed_facts(pid: i32, mapped: &Mapped, in_force: &[Other], off: &[Off], has_ring: bool) -> Vec<String> {
    const MOST: usize = 20;
    // The KA_ variables are for the shim and the supervisor, and KA_SKIP for the shim.
    let has_way = |way| in_force.iter().any(|other| other.way == way);
    let is_told = has_way("preload") || has_way("seccomp");
    let given = conf::given(if is_told { &mapped.settings } else { Default::default() });
    let mut room = [Rule::SKIP; Rules::MAX];
    let policy = given.policy(&mut room);
    let is_left_alone = |(local, peer): (Option<SocketAddr>, Option<SocketAddr>)| {
        let port = local.map_or(0, |local| local.port());
        policy.decide(peer.map(Endpoint::from), port) == Action::Skip
    };
    let looks_at_peer = policy.rules.look_at_peer();
    let mut facts = Vec::new();
    let mut is_explained = true;
    for Off { fd, ends, is_listener } in off.iter().take(MOST) {
        let rule = if is_left_alone(*ends) {
            "; a rule of KA_RULES leaves it alone"
        } else if *is_listener && looks_at_peer {
            "; rules of KA_RULES choose by peer, so only its connections get a policy"
        } else {
            ""
        };
        is_explained &= !rule.is_empty();
        facts.push(format!("without keepalive: fd {fd}, {}{rule}", ka_reach::attach::arrow(*ends)));
    }
    if let Some(more) = off.len().checked_sub(MOST).filter(|more| *more > 0) {
        facts.push(format!("and {more} more: ka ls --off --pid {pid}"));
    }
    if policy.config.enabled() != Some(true) {
        facts.push("reason: KA_POLICY=off".to_owned());
    } else if has_way("preload") && policies::is_skipped(&given.skip, pid) {
        facts.push(format!("reason: KA_SKIP={} leaves this program alone", given.skip.escape_ascii()));
    } else if !is_explained {
        if policy.mode == Mode::Default {
            facts.push(
                "possible reason: the program has turned keepalive off itself, which mode default allows"
                    .to_owned(),
            );
        }
        facts.push(
            "possible reasons: the program opened it with system calls of its own or through io_uring, with a C library \
             that it loaded itself (dlmopen), or before the policy was in force; or another process passed it to this one"
                .to_owned(),
        );
        if has_ring {
            facts.push("it uses io_uring, so that is likely".to_owned());
        }
    }
    facts
}

/// A socket without keepalive.
struct Off {
    fd: i32,
    is_listener: bool,
    /// Its local address and its peer.
    ends: (Option<SocketAddr>, Option<SocketAddr>),
}

struct Sockets {
    tcp: usize,
    off: Vec<Off>,
    rings: bool,
    /// Reasons why sockets were left out.
    left: Vec<String>,
}

/// Flags of a worker's answer about a socket, in the lower half of a word. The socket is TCP, its keepalive is off, or
/// the kernel rejected the call. If the kernel rejected the call, the upper half has the errno.
const TCP: u64 = 1;
const OFF: u64 = 2;
const REFUSED: u64 = 4;
const LISTENS: u64 = 8;

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
                    found.off.push(Off { fd: target.fd, is_listener: kind & LISTENS != 0, ends });
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
            let is_listener = SockRef::from(&socket).is_listener().unwrap_or(false);
            let kind = if is_listener { TCP | OFF | LISTENS } else { TCP | OFF };
            answer(kind);
            let (local, peer) = ka_reach::attach::ends(socket.as_fd());
            cell.answer(words::together(&[&[kind], &words::of_address(local), &words::of_address(peer)]));
        }
        Err(ka_core::Error::System { option: SockOpt::Protocol, .. } | ka_core::Error::NotTcp) => answer(0),
        Err(error) => refused(error.errno().0),
    }
}
