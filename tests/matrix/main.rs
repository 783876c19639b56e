//! Runs real programs in each way in which ka can reach their sockets. According to the kernel, both ends of their
//! connections must have the policy. Apart from that, the programs must behave as without ka.
//!
//! `make matrix` runs all programs and writes docs/matrix.md. `make matrix ONLY=nginx` runs one. As a test it runs the
//! few programs that other tests need too.

mod cell;
mod kernel;
mod programs;
mod report;
mod way;

use std::env;
use std::fs;
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex};

use ka_test::artifact::release;
use ka_test::child::succeed;
use ka_test::kernel::lacks_bpf;
use ka_test::log::skip;
use ka_test::namespace::is_root;
use ka_test::path::{root, scratch};
use libtest_mimic::{Arguments, Failed, Trial};

use cell::CellResult;
use programs::Program;
use way::Way;

/// If set, runs all programs, and installs the tools that they need.
const ALL: &str = "KA_MATRIX_ALL";
/// The file for the table.
const REPORT: &str = "KA_MATRIX_REPORT";
/// The programs that run with every `make test`.
const FEW: [&str; 3] = ["nginx", "python", "redis"];

/// The results of a program in all ways.
pub(crate) struct Row {
    pub program: &'static Program,
    pub cells: Vec<CellResult>,
    /// The errors, by way.
    pub wrong: Vec<(Way, String)>,
}

fn main() -> ExitCode {
    if let Ok(cell) = env::var(cell::CELL) {
        cell::run_inside(&cell);
        return ExitCode::SUCCESS;
    }
    let mut arguments = Arguments::from_args();
    let chosen = |program: &&Program| {
        let named = arguments.filter.as_ref().is_none_or(|filter| program.name == filter || !arguments.exact);
        named && (env::var_os(ALL).is_some() || FEW.contains(&program.name))
    };
    let chosen: Vec<&'static Program> = programs::ALL.iter().filter(chosen).collect();
    if chosen.is_empty() {
        let names: Vec<_> = programs::ALL.iter().map(|program| program.name).collect();
        eprintln!("no such program; the programs are {}", names.join(", "));
        return ExitCode::FAILURE;
    }
    if !arguments.list
        && let Err(why) = prepare(&chosen)
    {
        skip(&format!("programs in each way: {why}"));
        return if env::var_os(ALL).is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    let rows = Arc::new(Mutex::new(vec![]));
    let trial = |program: &'static Program| {
        let rows = Arc::clone(&rows);
        Trial::test(program.name, move || {
            let row = row(program);
            let wrong: Vec<_> = row.wrong.iter().map(|(way, why)| format!("{}: {why}", way.name())).collect();
            rows.lock().unwrap().push(row);
            if wrong.is_empty() { Ok(()) } else { Err(Failed::from(wrong.join("\n"))) }
        })
    };
    let trials = chosen.into_iter().map(trial).collect();
    // The programs mostly wait, so three can run at the same time.
    arguments.test_threads.get_or_insert(3);
    let conclusion = libtest_mimic::run(&arguments, trials);
    let mut rows = rows.lock().unwrap();
    rows.sort_by_key(|row| programs::ALL.iter().position(|program| program.name == row.program.name));
    if env::var_os(ALL).is_some() && !arguments.list {
        let table = report::write(&rows);
        match env::var_os(REPORT) {
            Some(file) => fs::write(file, table).unwrap(),
            None => println!("{table}"),
        }
    }
    conclusion.exit_code()
}

/// Prepares everything that the cells need. Returns an error if cells cannot run here.
fn prepare(chosen: &[&'static Program]) -> Result<(), String> {
    if !is_root() {
        return Err("needs root: servers become other users, and only root may load eBPF programs".to_owned());
    }
    if env::var_os(ALL).is_some() {
        let mut need = Command::new(root().join("scripts/need"));
        for program in chosen {
            need.args(program.needs.split_whitespace());
        }
        succeed(need.stdin(Stdio::null()));
    }
    release();
    let mut probe = Command::new("unshare");
    probe.args(["--net", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-c"]);
    // Also remove the empty cgroups of an interrupted run.
    probe.arg(
        "mount -t tmpfs none /run && mkdir /run/c && mount -t cgroup2 none /run/c && mount -t bpf none /sys/fs/bpf && \
         mkdir -p /run/c/ka-matrix-probe && { rmdir /run/c/ka-matrix-*/ 2>/dev/null; [ ! -e /run/c/ka-matrix-probe ]; }",
    );
    let output = probe.output().map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("no namespaces, cgroup v2 or bpffs: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }
}

/// Runs a program in each way, and compares it with a run without ka.
fn row(program: &'static Program) -> Row {
    let built = scratch(program.name);
    fs::create_dir(&built).unwrap();
    let mut row = Row { program, cells: vec![], wrong: vec![] };
    for way in Way::ALL {
        if let Some(why) = lacks_bpf().filter(|_| way == Way::Cgroup) {
            skip(&format!("{} by cgroup: {why}", program.name));
            row.cells.push(CellResult { untried: Some(why), ..CellResult::default() });
            continue;
        }
        let own = row.cells.first().map_or(&[][..], |none: &CellResult| &none.ends);
        let seen = cell::run(program, way, own, &built);
        let none = row.cells.first().unwrap_or(&seen);
        let except = program.except.iter().find(|(ways, _)| ways.contains(&way));
        let wrong = match (misbehaves(&seen, none), lacks(way, &seen, none), except) {
            (Some(why), ..) | (None, Some(why), None) => Some(why),
            // In mode default, the program's own values are right. They do not show that the way works.
            (None, None, Some((_, why))) if way != Way::Default || !lacks_policy_everywhere(&seen) => {
                Some(format!("works, but \"{why}\" is expected"))
            }
            _ => None,
        };
        row.wrong.extend(wrong.map(|why| (way, why)));
        let failed = seen.failure.is_some();
        row.cells.push(seen);
        if failed && way == Way::None {
            break;
        }
    }
    let _ = fs::remove_dir_all(built);
    row
}

/// Returns whether no end has the policy.
fn lacks_policy_everywhere(seen: &CellResult) -> bool {
    seen.ends.iter().all(|end| Way::Force.lacks(end, &[]).is_some())
}

/// Returns how the programs behave differently from a run without ka.
fn misbehaves(seen: &CellResult, none: &CellResult) -> Option<String> {
    if let Some(failure) = &seen.failure {
        return Some(failure.clone());
    }
    if seen.answer != none.answer || !seen.answer.starts_with("status 0") {
        return Some(format!("the answer is {}, without ka {}", seen.answer, none.answer));
    }
    (seen.ending != none.ending)
        .then(|| format!("the server ends with {}, without ka with {}", seen.ending, none.ending))
}

/// Returns an end of a connection with wrong settings, and what is wrong.
fn lacks(way: Way, seen: &CellResult, none: &CellResult) -> Option<String> {
    let lack = |end: &kernel::End| {
        let no_timer = || (way != Way::None && !end.is_armed()).then_some("ss shows no keepalive");
        Some(format!("{}: {end}", way.lacks(end, &none.ends).or_else(no_timer)?))
    };
    seen.ends.iter().find_map(lack)
}
