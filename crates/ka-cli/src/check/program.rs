//! `ka check PROGRAM`: prints which ways reach a program, and the command to use.

use std::ffi::OsStr;
use std::io::{self, Read as _};
use std::path::Path;

use ka_reach::elf::{Elf, Linked};
use ka_reach::escape;
use ka_reach::file;
use ka_reach::privilege;

use super::{CheckReport, WayResult, policy_flags};
use crate::client::Client;
use crate::failure::Failure;
use crate::policy_sources::Flags;
use crate::program::{self, Program};
use crate::shell::quoted;
use crate::via::{self, Obstacle, Reachability, StartRequest};
use crate::wrapper;

/// Reports the ways that reach a program.
pub(super) fn report(name: &OsStr) -> Result<CheckReport, Failure> {
    let arguments = [name.to_owned()];
    let program = Program::from_command(&arguments).map_err(|failure| {
        let message = format!("check: {}", failure.message);
        Failure { message, ..failure }
    })?;
    let request = StartRequest {
        program: &program,
        arguments: &arguments,
        flags: Flags::default(),
        verbose: false,
        best_effort: false,
        denies_io_uring: false,
    };
    let mut command = None;
    let mut is_reached = false;
    let mut ways = Vec::new();
    for way in via::ALL {
        let (reaches, why) = match way.check(&request) {
            Reachability::Reached(how) => {
                is_reached |= way.is_automatic();
                let via = if way.is_automatic() { String::new() } else { format!("--via {} ", way.name()) };
                command.get_or_insert_with(|| format!("ka run {via}-- {}", quoted(name)));
                (true, how)
            }
            Reachability::NotReached(Obstacle { why, .. })
            | Reachability::Forbidden(Obstacle { why, .. }) => (false, why),
        };
        ways.push(WayResult { way: way.name(), reaches: Some(reaches), why });
    }
    if let Some(shim) = via::listed_for(&request) {
        let from =
            if program.secure.is_some() { "/etc/ka.conf" } else { "the KA_ variables and /etc/ka.conf" };
        for line in ways.iter_mut().filter(|line| line.way == "preload") {
            line.reaches = Some(true);
            line.why = format!(
                "/etc/ld.so.preload lists {}: it gets the policy of {from}, also without ka run",
                shim.display()
            );
        }
        is_reached = true;
        command = Some("none: /etc/ld.so.preload gives it the policy".to_owned());
    }
    ways.sort_by_key(|line| line.reaches != Some(true));
    let obstacle = program.secure.filter(|_| !privilege::may_look_anywhere()).map_or_else(
        || privilege::obstacle().map(|error| error.to_string()),
        |secure| Some(format!("{secure}: once it runs, ka attach needs CAP_SYS_PTRACE (run ka as root)")),
    );
    // If the user may not read a program's file, the user may not examine its process either. ptrace(2),
    // `PTRACE_MODE_READ`
    let is_unreadable = file::open_regular(&program.executable)
        .is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
    let obstacle = obstacle.or_else(|| {
        let is_closed = is_unreadable && !privilege::may_look_anywhere();
        is_closed.then(|| {
            "you may not read its file: once it runs, ka attach needs CAP_SYS_PTRACE (run ka as root)"
                .to_owned()
        })
    });
    let sudo = if obstacle.is_some() { "sudo " } else { "" };
    // `$!` would be the PID of the wrapper, so suggest starting ka with the wrapper.
    let command = command.unwrap_or_else(|| match program.name() {
        wrapper if wrapper::changes_user(wrapper) => format!("{} ka run -- PROGRAM", quoted(name)),
        _ => format!("{} & {sudo}ka attach {}--follow $!", quoted(name), policy_flags()),
    });
    ways.push(WayResult {
        way: "attach",
        reaches: Some(obstacle.is_none()),
        why: obstacle.unwrap_or_else(|| {
            "once it runs: its open sockets; with --follow also later ones, within a second".to_owned()
        }),
    });
    let target = program.path.display().to_string();
    let facts = facts(&program, is_unreadable);
    if is_broken(&program) {
        let command = "none: the kernel cannot start it".to_owned();
        return Ok(CheckReport {
            target,
            facts,
            ways: Vec::new(),
            is_reached: false,
            command: Some(command),
            outer: None,
        });
    }
    Ok(CheckReport { target, facts, ways, is_reached, command: Some(command), outer: None })
}

/// Returns whether a program's file has the ELF magic number, but cannot be parsed as ELF.
fn is_broken(program: &Program) -> bool {
    let mut start = [0; 4];
    let read = file::open_regular(&program.executable).and_then(|mut file| file.read_exact(&mut start));
    program.elf.is_none() && read.is_ok() && start == *b"\x7fELF"
}

fn facts(program: &Program, is_unreadable: bool) -> Vec<String> {
    let mut facts = Vec::new();
    if program.path != program.executable {
        facts.push(format!("a script that {} runs", program.executable.display()));
    }
    match &program.elf {
        None if is_unreadable => facts.push("you may not read its file: unknown how it is linked".to_owned()),
        None if is_broken(program) => facts.push("a broken ELF file".to_owned()),
        None => facts.push("not an ELF program".to_owned()),
        Some(elf) => {
            let loader =
                elf.loader.as_deref().map(|loader| format!(", its loader is {}", escape::lossless(loader)));
            let kind = match (&loader, elf.is_position_independent) {
                (Some(_), _) => "dynamic",
                (None, _) if elf.is_loader() => "a dynamic loader",
                (None, true) => "static-pie",
                (None, false) => "static",
            };
            facts.push(format!("{}, {kind}{}", elf.machine_name(), loader.unwrap_or_default()));
            if elf.is_go {
                facts.push(
                    "built with Go, which turns keepalive on by itself (idle 15 s, intvl 15 s) unless the program \
                     disables it"
                        .to_owned(),
                );
            }
            if elf.needed.iter().any(|name| name.starts_with(b"liburing.so")) {
                facts.push(
                    "linked to liburing: preload does not see what it does through io_uring".to_owned(),
                );
            }
            if kind == "dynamic" && !elf.is_go {
                facts.extend(linked_facts(&program.executable, elf));
            }
        }
    }
    facts.extend(wrapper::options_fact(program.name()));
    facts.extend(Client::named(program.name()).map(Client::text));
    let marks = program::privilege_facts(&program.executable);
    match program.secure {
        None if !marks.is_empty() => {
            facts.extend(marks);
            facts.push(
                "for a user with fewer privileges than the program, preload and attach do not reach it"
                    .to_owned(),
            );
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
            "cannot find or read {library}, to which {} is linked: unknown whether preload sees all sockets",
            user.display()
        ));
    }
    if let Some(library) = linked.go_library() {
        facts.push(format!(
            "linked to {}, which was built with Go: preload does not see that library's sockets",
            library.display()
        ));
    }
    let imports = linked.imports_sockets();
    match linked.calls_sockets() {
        Ok(Some(file)) if imports != Some(false) || linked.unread.is_some() => facts.push(format!(
            "{} also makes system calls for sockets itself, which preload does not see: \
             use ka run --via seccomp",
            file.display()
        )),
        Ok(_) => {}
        Err(error) => facts.push(format!("ka cannot read its code: {error}")),
    }
    if imports.is_none() {
        facts.push(
            "ka cannot read its symbols or those of a library: unknown whether preload sees its sockets"
                .to_owned(),
        );
    }
    facts
}
