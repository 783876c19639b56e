//! Makes each system call of ka fail once, with each errno that it can return.
//!
//! After each failure, ka must end with a documented exit status and report what it did not do. A failed command
//! leaves everything unchanged. If ka reports a change as done, the kernel must confirm it. A program that ka starts
//! has the policy, or is reported, or is not started.

mod command;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use command::cgroups::{Cgroup, in_own_cgroup_tree};
use command::{Holder, holder, ka, outcome, source};
use ka_test::artifact::release;
use ka_test::compiler::{Linkage, cc, compile};
use ka_test::fault::{Fault, Ran, Trial, check_end, each, takes_all, watch};
use ka_test::kernel::sysctl;
use ka_test::log::{say, skip};
use ka_test::namespace::{in_own_namespaces, is_root, user_namespace};
use ka_test::path::{PublicFolder, copy_program, root, scratch};
use ka_test::wait::eventually;
use serde_json::Value;

/// Options that limit the failures to ka's own calls, without those of the program that ka becomes.
const OPTIONS: [&str; 2] = ["-x", "ka"];

/// The number of failures of a call that repeats, in a run that does not test all of them.
const FEW: usize = 2;

const TRIAL: Trial<'static> = Trial {
    // Errors that the kernel does not return for these calls. Rust's library aborts if close fails for a folder,
    // which does not happen in /proc. The kernel does not report to a waiting ioctl that the notification is gone.
    // The program's pointer is valid, so EFAULT does not occur. The descriptor is open, so EBADF does not occur.
    never: &[
        ("close", libc::EIO),
        ("ioctl", libc::ENOENT),
        ("process_vm_readv", libc::EFAULT),
        ("pidfd_getfd", libc::EBADF),
    ],
    options: &OPTIONS,
    few: FEW,
    ..ka_test::fault::TRIAL
};

const STANDARD: &str = "1 60 10 6 0\n";
const NONE: &str = "0 7200 75 9 0\n";

fn seen(flags: &[&str]) -> PathBuf {
    compile(cc().args(flags), &source("seen"), Linkage::Nothing)
}

fn dynamic() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| seen(&[]))
}

fn fixed() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| seen(&["-static"]))
}

/// Returns whether ka has printed a message of its own.
fn has_message(ran: &Ran) -> bool {
    ran.stderr.lines().any(|line| line.strip_prefix("ka: ").is_some_and(|why| why.len() > 10))
}

/// Checks that ka has ended with one of these statuses and a message.
fn is_refused(ran: &Ran, statuses: &[i32]) -> Result<(), String> {
    if !statuses.contains(&ran.status) {
        return Err("ka ended with an undocumented status".to_owned());
    }
    if has_message(ran) { Ok(()) } else { Err("ka printed no message".to_owned()) }
}

/// Judges `ka run`: the program has the policy, or was not started, or ka has reported that it lacks the policy.
fn judge_run(fault: &Fault, ran: &Ran, with_policy: &str) -> Result<(), String> {
    match (ran.status, ran.stdout.as_str()) {
        (0, printed) if printed == with_policy => Ok(()),
        // The supervisor sets an option for the program, which gets the error of the kernel.
        (1, "") if fault.name() == "setsockopt" && ran.stderr.contains("setsockopt fails") => Ok(()),
        (_, "") => is_refused(ran, &[125, 126, 127]),
        (0, _) if has_message(ran) => Ok(()),
        _ => Err(format!("a program without the policy, and no message about {}", fault.name())),
    }
}

#[test]
fn run_starts_the_program_under_the_policy_or_not_at_all() {
    let prepare = || {
        let mut command = ka();
        command.arg("run").arg(dynamic()).arg("listen");
        (command, ())
    };
    let judge = |fault: &Fault, ran: &Ran, ()| judge_run(fault, ran, STANDARD);
    each(&Trial { name: "ka run", ..TRIAL }, prepare, judge);
}

#[test]
fn failures_of_the_supervisor_are_reported() {
    // Each program with its accepted outputs. The second program sets its own values, and in mode floor stricter values
    // stay. If the supervisor cannot read such a value because getsockopt(2) fails, the policy's value replaces it.
    let floor = ["1 30 10 5 0\n", "1 60 10 5 0\n", "1 30 10 6 0\n"];
    for (what, mode, accepted) in [("listen", "force", &[STANDARD][..]), ("before", "floor", &floor)] {
        let prepare = || {
            let mut command = ka();
            command.args(["run", "--via", "seccomp", "--mode", mode]).arg(fixed()).arg(what);
            (command, ())
        };
        let judge = |fault: &Fault, ran: &Ran, ()| {
            let untold = fault.name() == "getsockopt" && accepted.contains(&ran.stdout.as_str());
            judge_run(fault, ran, if untold { &ran.stdout } else { accepted[0] })
        };
        let name = format!("ka run --via seccomp, {what}");
        each(&Trial { name: &name, missed: 5, ..TRIAL }, prepare, judge);
    }
}

#[test]
fn attach_reports_what_it_has_set_and_sets_no_partial_policy() {
    if !in_own_namespaces("attach_reports_what_it_has_set_and_sets_no_partial_policy") {
        return;
    }
    for (how, arguments, timers) in [
        ("all at once", &["-p", "60,10,6"][..], [60, 10, 6, 0]),
        ("with another task's", &["task", "-p", "60,10,6"], [60, 10, 6, 0]),
        ("by number", &["all", "-p", "60,10,6", "-u", "auto"], [60, 10, 6, 120_000]),
    ] {
        let prepare = || {
            let mut command = Command::new(holder());
            let (first, rest) = arguments.split_first().unwrap();
            let holder = Holder::start(if *first == "task" { command.arg("task") } else { &mut command });
            let mut attach = ka();
            attach.arg("attach").args(if first.starts_with('-') { arguments } else { rest });
            match *first {
                "all" => attach.arg("--port").arg(holder.port.to_string()).arg("--all"),
                _ => attach.arg(holder.pid().to_string()),
            };
            (attach, holder)
        };
        let judge = |fault: &Fault, ran: &Ran, mut holder: Holder| {
            let options = holder.look();
            // If the kernel does not have the user timeout for a socket, it is left out.
            let lacks = [libc::ENOPROTOOPT, libc::EOPNOTSUPP].contains(&fault.errno);
            let has = |options: &command::Options| {
                options.timers == timers
                    || (lacks && options.timers[..3] == timers[..3] && options.timers[3] == 0)
            };
            let have = options.iter().filter(|options| options.on && has(options)).count();
            // With keepalive off, idle, intvl and cnt may have changed, but have no effect.
            if options.iter().any(|options| options.on && !has(options)) {
                return Err(format!("half a policy: {options:?}"));
            }
            if options.iter().any(|options| !options.on && options.timers[3] != 0) {
                return Err(format!("a user timeout of a policy that failed: {options:?}"));
            }
            let count = |what: &str| {
                let is_summary =
                    |line: &&str| line.contains(" socket set to ") || line.contains(" sockets set to ");
                let line = ran.stdout.lines().rfind(is_summary)?;
                let mut words = line.split([' ', ',', ';']).collect::<Vec<_>>();
                words.retain(|word| !word.is_empty());
                let at = words.iter().position(|word| word.trim_end_matches('s') == what)?;
                words.get(at.checked_sub(1)?)?.parse::<usize>().ok()
            };
            let failed_to_say = ran.status == 2 && has_message(ran);
            match (count("socket"), count("failed")) {
                _ if failed_to_say => Ok(()),
                (Some(set), _) if set != have => Err(format!("{have} sockets have it")),
                (Some(_), Some(0)) if ran.status == 0 && have < options.len() && !fault.is_gone() => {
                    Err("ka did not report the other sockets".to_owned())
                }
                (Some(_), Some(0)) if ran.status == 0 => Ok(()),
                (Some(_), Some(0))
                    if ran.status == 1 && ran.stdout.contains("not examined") && has_message(ran) =>
                {
                    Ok(())
                }
                (Some(_), Some(1..))
                    if ran.status == 1 && (has_message(ran) || ran.stdout.contains(" fd ")) =>
                {
                    Ok(())
                }
                _ => Err("its status is not what it says".to_owned()),
            }
        };
        let name = format!("ka attach, {how}");
        each(&Trial { name: &name, missed: 10, ..TRIAL }, prepare, judge);
    }
}

/// Each listed value is true or null, and ls does not exit with success if it could not examine something.
#[test]
fn ls_lists_no_wrong_values() {
    if !in_own_namespaces("ls_lists_no_wrong_values") {
        return;
    }
    let own = Holder::start(Command::new(holder()).arg("keepalive"));
    let rows = |text: &str| -> Option<Vec<Value>> { serde_json::from_str(text).ok() };
    let key = |row: &Value| (row["local"].clone(), row["peer"].clone());
    for arguments in [
        &["ls", "--json"][..],
        &["ls", "--json", "--off"],
        &["ls", "--json", "--all-netns"],
        &["ls", "--json", "--pid"],
    ] {
        let prepare = || {
            let mut command = ka();
            command.args(arguments);
            if arguments.contains(&"--pid") {
                command.arg(own.pid().to_string());
            }
            (command, ())
        };
        let (mut command, ()) = prepare();
        let (status, out, _) = outcome(&mut command);
        let truth = rows(&out).unwrap();
        let judge = |_: &Fault, ran: &Ran, ()| {
            if ran.status == 2 {
                return is_refused(ran, &[2]);
            }
            let listed = rows(&ran.stdout).ok_or("ka printed no JSON")?;
            for row in &listed {
                let real =
                    truth.iter().find(|real| key(real) == key(row)).ok_or("a socket that does not exist")?;
                for (name, value) in row.as_object().ok_or("no object")? {
                    let may_differ = value.is_null() || name == "next_probe_ms" || name == "others";
                    if !may_differ && *value != real[name] && real[name].is_null() == value.is_null() {
                        return Err(format!("{name} is {value}, and was {}", real[name]));
                    }
                }
            }
            // Sockets may be missing only if ls says so, or if --pid selects a process that cannot be examined.
            if listed.len() != truth.len() && !has_message(ran) && !arguments.contains(&"--pid") {
                return Err("sockets are missing".to_owned());
            }
            if ran.status == status || has_message(ran) { Ok(()) } else { Err("another status".to_owned()) }
        };
        let name = format!("ka {}", arguments.join(" "));
        each(&Trial { name: &name, missed: 25, ..TRIAL }, prepare, judge);
    }
}

#[test]
fn check_plan_and_defaults_end_with_an_answer_or_a_reason() {
    if !in_own_namespaces("check_plan_and_defaults_end_with_an_answer_or_a_reason") {
        return;
    }
    let holder = Holder::start(&mut Command::new(holder()));
    let (pid, program) = (holder.pid().to_string(), dynamic().to_str().unwrap().to_owned());
    for arguments in [
        &["check"][..],
        &["check", &pid],
        &["check", &program],
        &["plan", "--path", "350s"],
        &["plan", "--preset", "aws-nlb", "--json"],
        &["completions", "bash"],
        &["defaults"],
    ] {
        let prepare = || {
            let mut command = ka();
            command.args(arguments);
            (command, ())
        };
        let judge = |_: &Fault, ran: &Ran, ()| match ran.status {
            0 | 1 if !ran.stdout.is_empty() => Ok(()),
            _ => is_refused(ran, &[2, 126, 127]),
        };
        let name = format!("ka {}", arguments[..arguments.len().min(2)].join(" "));
        each(&Trial { name: &name, missed: 25, ..TRIAL }, prepare, judge);
    }
}

const SYSCTLS: [&str; 3] = ["tcp_keepalive_time", "tcp_keepalive_intvl", "tcp_keepalive_probes"];

fn sysctls() -> [String; 3] {
    SYSCTLS.map(|name| fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap().trim().to_owned())
}

/// ka either writes all three sysctls and the file, or leaves all of them unchanged.
#[test]
fn defaults_are_set_completely_or_not_at_all() {
    if !in_own_namespaces("defaults_are_set_completely_or_not_at_all") {
        return;
    }
    // The sysctls exist once, so only one run at a time may change them.
    let one = std::sync::Mutex::new(());
    let prepare = || {
        let lock = one.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for (name, value) in SYSCTLS.iter().zip(["7200", "75", "9"]) {
            sysctl(name, value);
        }
        let folder = scratch("sysctl.d");
        fs::create_dir(&folder).unwrap();
        let mut command = ka();
        command.args(["defaults", "--set", "61,11,7"]);
        command.arg(format!("--persist={}", folder.join("ka.conf").display()));
        (command, (folder, lock))
    };
    let judge = |_: &Fault, ran: &Ran, (folder, lock): (PathBuf, std::sync::MutexGuard<'_, ()>)| {
        let files: Vec<_> = fs::read_dir(&folder).unwrap().flatten().map(|entry| entry.file_name()).collect();
        let (now, is_written) = (sysctls(), files == ["ka.conf"]);
        drop(lock);
        let _ = fs::remove_dir_all(&folder);
        let (is_set, is_untouched) = (now == ["61", "11", "7"], now == ["7200", "75", "9"]);
        match ran.status {
            0 if is_set && is_written => Ok(()),
            2 if is_untouched && files.is_empty() => is_refused(ran, &[2]),
            // Everything was set, but standard output failed, or the file could not be synced.
            2 if is_set
                && is_written
                && ["standard output: ", "the values are set and the file is written"]
                    .iter()
                    .any(|why| ran.stderr.contains(why)) =>
            {
                is_refused(ran, &[2])
            }
            _ => Err(format!("{now:?}, {files:?}")),
        }
    };
    each(&Trial { name: "ka defaults --set", missed: 25, ..TRIAL }, prepare, judge);
}

/// Returns the options that the kernel reports for a new socket of a program in a cgroup.
fn seen_in(cgroup: &Path) -> String {
    let mut command = Command::new("sh");
    command
        .args(["-c", "echo $$ >\"$0/cgroup.procs\" && exec \"$@\""])
        .arg(cgroup)
        .arg(fixed())
        .arg("listen");
    outcome(&mut command).1
}

/// Cgroups below one cgroup of the test, each for one run.
struct Cgroups {
    parent: Cgroup,
    next: AtomicU32,
}

impl Cgroups {
    fn new() -> Self {
        Self { parent: Cgroup::new(), next: AtomicU32::new(0) }
    }

    fn fresh(&self) -> PathBuf {
        self.parent.below(&self.next.fetch_add(1, Ordering::Relaxed).to_string())
    }

    /// Returns a new cgroup with the policy 60, 10, 6.
    fn attached(&self) -> PathBuf {
        let path = self.fresh();
        assert_eq!(outcome(ka().args(["cgroup", "attach"]).arg(&path)).0, 0);
        path
    }

    fn remove(path: &Path) {
        outcome(ka().args(["cgroup", "detach"]).arg(path));
        for _ in 0..100 {
            if fs::remove_dir(path).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

#[test]
fn a_failed_cgroup_attach_leaves_the_old_policy() {
    if !in_own_cgroup_tree("a_failed_cgroup_attach_leaves_the_old_policy") {
        return;
    }
    let cgroups = Cgroups::new();
    for (name, before) in [("ka cgroup attach", NONE), ("ka cgroup attach, again", STANDARD)] {
        let prepare = || {
            let path = if before == STANDARD { cgroups.attached() } else { cgroups.fresh() };
            let mut command = ka();
            command.args(["cgroup", "attach", "-p", "30,5,3"]).arg(&path);
            (command, path)
        };
        let judge = |_: &Fault, ran: &Ran, path: PathBuf| {
            let now = seen_in(&path);
            Cgroups::remove(&path);
            match ran.status {
                0 if now == "1 30 5 3 0\n" => Ok(()),
                // The policy is attached, but open sockets were not set.
                1 if now == "1 30 5 3 0\n" => is_refused(ran, &[1]),
                2 if now == before => is_refused(ran, &[2]),
                2 if now == "1 30 5 3 0\n" && ran.stderr.contains("standard output") => Ok(()),
                _ => Err(format!("the cgroup has {now}")),
            }
        };
        each(&Trial { name, missed: 10, ..TRIAL }, prepare, judge);
    }

    let prepare = || {
        let path = cgroups.attached();
        let mut command = ka();
        command.args(["cgroup", "detach"]).arg(&path);
        (command, path)
    };
    let judge = |_: &Fault, ran: &Ran, path: PathBuf| {
        let now = seen_in(&path);
        Cgroups::remove(&path);
        match ran.status {
            0 if now == NONE => Ok(()),
            1 | 2 => is_refused(ran, &[1, 2]),
            _ => Err(format!("the cgroup has {now}")),
        }
    };
    each(&Trial { name: "ka cgroup detach", ..TRIAL }, prepare, judge);

    let path = cgroups.attached();
    let prepare = || {
        let mut command = ka();
        command.args(["cgroup", "ls", "--json"]).arg(&path);
        (command, ())
    };
    let judge = |fault: &Fault, ran: &Ran, ()| match ran.status {
        // If the cgroup was reported as gone, it has no policy.
        0 if ran.stdout.contains("\"idle\": 60") || fault.is_gone() => Ok(()),
        // ka names a cgroup that it could not read, and lists the rest.
        1 if ran.stderr.contains("1 cgroup was not examined") => Ok(()),
        _ => is_refused(ran, &[2]),
    };
    each(&Trial { name: "ka cgroup ls", ..TRIAL }, prepare, judge);
    Cgroups::remove(&path);
}

#[test]
fn run_via_cgroup_applies_the_policy_or_starts_nothing() {
    if !in_own_cgroup_tree("run_via_cgroup_applies_the_policy_or_starts_nothing") {
        return;
    }
    let cgroup = Cgroup::new();
    fs::write(cgroup.0.join("cgroup.procs"), std::process::id().to_string()).unwrap();
    let run = || {
        let mut command = ka();
        command.args(["run", "--via", "cgroup"]).arg(dynamic()).arg("listen");
        command
    };
    let judge = |fault: &Fault, ran: &Ran, ()| match fault.name() {
        // Without this process, nothing would remove the cgroup.
        "clone" => is_refused(ran, &[125]),
        // The started process has answered or has ended, so a failure of wait4 does not matter.
        "wait4" if ran.status != 0 => Err("the process that ka waited for has ended".to_owned()),
        _ => judge_run(fault, ran, STANDARD),
    };
    let trial = Trial { name: "ka run --via cgroup", missed: 5, ..TRIAL };
    each(&trial, || (run(), ()), judge);
    // The next run removes the cgroup that remained because its removal failed.
    assert_eq!(outcome(&mut run()).0, 0);
    eventually("no cgroup is left", || {
        fs::read_dir(&cgroup.0).unwrap().flatten().all(|entry| !entry.path().is_dir())
    });
}

#[test]
fn attach_via_bpf_sets_no_partial_policy() {
    if !in_own_cgroup_tree("attach_via_bpf_sets_no_partial_policy") {
        return;
    }
    let prepare = || {
        let holder = Holder::start(&mut Command::new(holder()));
        let mut command = ka();
        command.args(["attach", "--all", "--via", "bpf", "--port", &holder.port.to_string()]);
        (command, holder)
    };
    let judge = |ran: &Ran, mut holder: Holder| {
        let options = holder.look();
        let have = options.iter().filter(|options| options.on && options.timers == [60, 10, 6, 0]).count();
        let none = options.iter().filter(|options| !options.on && options.timers == [7200, 75, 9, 0]).count();
        match ran.status {
            0 if have == 3 => Ok(()),
            2 if have + none == 3 => is_refused(ran, &[2]),
            _ => Err(format!("{options:?}")),
        }
    };
    let trial = Trial { name: "ka attach --via bpf", missed: 25, ..TRIAL };
    each(&trial, prepare, |_: &Fault, ran: &Ran, holder| judge(ran, holder));
    without_memory("ka attach --via bpf", 40, prepare, judge);
}

/// Runs a command repeatedly. In each run, another allocation fails. `judge` checks the result.
fn without_memory<T>(
    name: &str,
    few: usize,
    prepare: impl Fn() -> (Command, T),
    judge: impl Fn(&Ran, T) -> Result<(), String>,
) {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    let library = LIBRARY.get_or_init(|| {
        let source = root().join("tests/c/memory_fails.c");
        compile(cc().args(["-shared", "-fPIC"]), &source, Linkage::Nothing)
    });
    let attempt = |number: usize| {
        let (mut command, state) = prepare();
        let mark = scratch("failed");
        command.env("LD_PRELOAD", library).env("ALLOCATION_OF", "ka").env("ALLOCATION_FAILED", &mark);
        command.env("ALLOCATION", number.to_string());
        let ran = watch(&command);
        (fs::remove_file(&mark).is_ok(), ran, state)
    };
    // Finds the number of allocations by bisection: beyond that number, none fails.
    let (mut count, mut step) = (0, 1 << 16);
    while step > 0 {
        count += if attempt(count + step).0 { step } else { 0 };
        step /= 2;
    }
    assert!(count > 20, "{name}: {count} allocations");
    let stride = if takes_all() { 1 } else { (count / few).max(1) };
    let mut ended = 0;
    for number in (1..=count).step_by(stride) {
        let (_, ran, state) = attempt(number);
        ended += usize::from(ran.stderr.contains("ka: out of memory"));
        // glibc and Rust's library abort the program if there is no memory to start a thread.
        if ["Fatal glibc error: ", "memory allocation of "].iter().any(|words| ran.stderr.starts_with(words))
        {
            continue;
        }
        if let Err(why) = check_end(&ran).and_then(|()| judge(&ran, state)) {
            panic!("{name}, allocation {number} of {count}: {why}: {ran:?}");
        }
    }
    assert!(ended > 0, "{name}: no run ended for lack of memory");
    say(&format!("{name}: {} of {count} allocations fail, {ended} end it", count.div_ceil(stride)));
}

/// Judges `ka run` without memory: the program has the policy, or was not started, or ka has reported that it lacks
/// the policy.
fn has_policy_or_is_reported(ran: &Ran) -> Result<(), String> {
    match (ran.status, ran.stdout.as_str()) {
        (0, STANDARD) => Ok(()),
        (125, "") => is_refused(ran, &[125]),
        (_, NONE) if has_message(ran) => Ok(()),
        _ => Err("a program without the policy".to_owned()),
    }
}

/// One allocation fails. ka continues without it, or ends with a message, and leaves nothing half done.
#[test]
fn exits_with_a_message_when_out_of_memory() {
    if !in_own_namespaces("exits_with_a_message_when_out_of_memory") {
        return;
    }
    let few = 40;
    for (way, program) in [("preload", dynamic()), ("seccomp", fixed())] {
        let prepare = || {
            let mut command = ka();
            command.args(["run", "--via", way]).arg(program).arg("listen");
            (command, ())
        };
        without_memory(&format!("ka run --via {way}"), few, prepare, |ran, ()| {
            has_policy_or_is_reported(ran)
        });
    }

    let attach = || {
        let holder = Holder::start(&mut Command::new(holder()));
        let mut command = ka();
        command.args(["attach", "-u", "auto", &holder.pid().to_string()]);
        (command, holder)
    };
    let judge = |ran: &Ran, mut holder: Holder| {
        let options = holder.look();
        let is_whole = |options: &command::Options| {
            if options.on {
                options.timers == [60, 10, 6, 120_000]
            } else {
                options.timers == [7200, 75, 9, 0]
            }
        };
        match ran.status {
            _ if !options.iter().all(is_whole) => Err(format!("half a policy: {options:?}")),
            0 if options.iter().all(|options| options.on) => Ok(()),
            _ => is_refused(ran, &[1, 2]),
        }
    };
    without_memory("ka attach", few, attach, judge);

    let holder = Holder::start(&mut Command::new(holder()));
    let pid = holder.pid().to_string();
    for arguments in [
        &["ls", "--json"][..],
        &["check", &pid],
        &["plan", "--path", "350s"],
        &["completions", "bash"],
        &["completions", "zsh"],
        &["completions", "fish"],
    ] {
        let prepare = || {
            let mut command = ka();
            command.args(arguments);
            (command, ())
        };
        // Output that depends only on the arguments must be complete, or the command must fail. Only the line of plan
        // that names the shim depends on the file system.
        let fixed = |out: &str| {
            out.lines().filter(|line| !line.contains("LD_PRELOAD=")).map(str::to_owned).collect::<Vec<_>>()
        };
        let whole = fixed(&outcome(&mut prepare().0).1);
        let is_fixed = ["plan", "completions"].contains(&arguments[0]);
        let judge = |ran: &Ran, ()| match ran.status {
            0 | 1 if !is_fixed && !ran.stdout.is_empty() => Ok(()),
            0 if fixed(&ran.stdout) == whole => Ok(()),
            _ => is_refused(ran, &[2]),
        };
        without_memory(&format!("ka {}", arguments[..2].join(" ")), few, prepare, judge);
    }

    let set = || {
        for (name, value) in SYSCTLS.iter().zip(["7200", "75", "9"]) {
            sysctl(name, value);
        }
        let mut command = ka();
        command.args(["defaults", "--set", "61,11,7"]);
        (command, ())
    };
    let judge = |ran: &Ran, ()| match (ran.status, sysctls()) {
        (0, now) if now == ["61", "11", "7"] => Ok(()),
        (2, now) if now == ["61", "11", "7"] || now == ["7200", "75", "9"] => is_refused(ran, &[2]),
        (_, now) => Err(format!("{now:?}")),
    };
    without_memory("ka defaults --set", few, set, judge);
}

/// One allocation of `ka cgroup` fails. The cgroup then has the old or the new policy, and the next command succeeds.
#[test]
fn a_cgroup_has_one_complete_policy_when_out_of_memory() {
    if !in_own_cgroup_tree("a_cgroup_has_one_complete_policy_when_out_of_memory") {
        return;
    }
    let (cgroups, few) = (Cgroups::new(), 40);
    let attach = |path: &Path| {
        let mut command = ka();
        command.args(["cgroup", "attach", "-p", "30,5,3"]).arg(path);
        command
    };
    let detach = |path: &Path| {
        let mut command = ka();
        command.args(["cgroup", "detach"]).arg(path);
        command
    };
    let new = "1 30 5 3 0\n";
    for (name, before) in [("ka cgroup attach", NONE), ("ka cgroup attach, again", STANDARD)] {
        let prepare = || {
            let path = if before == STANDARD { cgroups.attached() } else { cgroups.fresh() };
            (attach(&path), path)
        };
        let judge = |ran: &Ran, path: PathBuf| {
            let now = seen_in(&path);
            let then = (outcome(&mut attach(&path)).0, seen_in(&path));
            Cgroups::remove(&path);
            if then != (0, new.to_owned()) {
                return Err(format!("the next attach leaves {then:?}"));
            }
            match ran.status {
                0 if now == new => Ok(()),
                1 | 2 if now == new || now == before => is_refused(ran, &[1, 2]),
                _ => Err(format!("the cgroup has {now}")),
            }
        };
        without_memory(name, few, prepare, judge);
    }

    let prepare = || {
        let path = cgroups.attached();
        (detach(&path), path)
    };
    let judge = |ran: &Ran, path: PathBuf| {
        let now = seen_in(&path);
        outcome(&mut detach(&path));
        let then = seen_in(&path);
        Cgroups::remove(&path);
        if then != NONE {
            return Err(format!("the next detach leaves {then}"));
        }
        match ran.status {
            0 if now == NONE => Ok(()),
            1 | 2 if now == NONE || now == STANDARD => is_refused(ran, &[1, 2]),
            _ => Err(format!("the cgroup has {now}")),
        }
    };
    without_memory("ka cgroup detach", few, prepare, judge);

    let path = cgroups.attached();
    let prepare = || {
        let mut command = ka();
        command.args(["cgroup", "ls", "--json"]).arg(&path);
        (command, ())
    };
    let judge = |ran: &Ran, ()| match ran.status {
        0 if ran.stdout.contains("\"idle\": 60") => Ok(()),
        _ => is_refused(ran, &[2]),
    };
    without_memory("ka cgroup ls", few, prepare, judge);
    Cgroups::remove(&path);

    // A cgroup with child cgroups cannot have members, so the test itself moves to a child.
    let own = cgroups.fresh();
    fs::write(own.join("cgroup.procs"), std::process::id().to_string()).unwrap();
    let prepare = || {
        let mut command = ka();
        command.args(["run", "--via", "cgroup"]).arg(dynamic()).arg("listen");
        (command, ())
    };
    without_memory("ka run --via cgroup", few, prepare, |ran, ()| has_policy_or_is_reported(ran));
    // The next run removes the cgroup of a run that ended early.
    assert_eq!(outcome(&mut prepare().0).0, 0);
    eventually("no cgroup is left", || {
        fs::read_dir(&own).unwrap().flatten().all(|entry| !entry.path().is_dir())
    });
}

/// The limit of open descriptors grows from too few to enough.
#[test]
fn exits_with_a_message_when_out_of_descriptors() {
    if !in_own_namespaces("exits_with_a_message_when_out_of_descriptors") {
        return;
    }
    // The program cannot raise this limit again.
    let limited = |most: u32, command: &Command| {
        let mut limited = Command::new("prlimit");
        limited.arg(format!("--nofile={most}:{most}")).arg(command.get_program()).args(command.get_args());
        limited.env_remove("LD_PRELOAD");
        let ran = watch(&limited);
        check_end(&ran).unwrap_or_else(|why| panic!("{most} descriptors: {why}: {ran:?}"));
        ran
    };
    let own = Holder::start(&mut Command::new(holder()));
    let (mut refused, mut done) = (0, 0);
    // The loader needs a descriptor to read libraries.
    for most in 4..32 {
        for (way, program) in [("preload", dynamic()), ("seccomp", fixed())] {
            let alone = limited(most, Command::new(program).arg("listen"));
            let ran = limited(most, ka().args(["run", "--via", way]).arg(program).arg("listen"));
            let result = match (ran.status, ran.stdout.as_str()) {
                (0, STANDARD) => {
                    done += 1;
                    Ok(())
                }
                (125, "") => is_refused(&ran, &[125]).map(|()| refused += 1),
                // The program has run as it does without ka.
                (status, said)
                    if (status, said) == (alone.status, &alone.stdout)
                        && (status != 0 || has_message(&ran)) =>
                {
                    Ok(())
                }
                _ => Err("a program without the policy".to_owned()),
            };
            result.unwrap_or_else(|why| panic!("{most} descriptors, {way}: {why}: {ran:?}"));
        }
        let mut holder = Holder::start(&mut Command::new(holder()));
        let ran = limited(most, ka().args(["attach", &holder.pid().to_string()]));
        let options = holder.look();
        let have = options.iter().filter(|options| options.on && options.timers == [60, 10, 6, 0]).count();
        let none = options.iter().filter(|options| !options.on && options.timers == [7200, 75, 9, 0]).count();
        let result = match ran.status {
            0 if have == 3 => Ok(()),
            _ if have + none == 3 => is_refused(&ran, &[1, 2]),
            _ => Err(format!("{options:?}")),
        };
        result.unwrap_or_else(|why| panic!("{most} descriptors, attach: {why}: {ran:?}"));
        for arguments in
            [&["ls", "--json"][..], &["check", &own.pid().to_string()], &["defaults"], &["check"]]
        {
            let ran = limited(most, ka().args(arguments));
            let result = match ran.status {
                0 | 1 if !ran.stdout.is_empty() => Ok(()),
                _ => is_refused(&ran, &[2]),
            };
            result.unwrap_or_else(|why| panic!("{most} descriptors, {arguments:?}: {why}: {ran:?}"));
        }
    }
    assert!(refused > 0 && done > 20, "{refused} runs were refused, {done} succeeded");
}

/// Tests each way with a /proc that is missing or hidden. ka reports what it does not know, and does what is
/// possible.
#[test]
fn a_hidden_or_missing_proc_causes_no_wrong_results() {
    if !in_own_namespaces("a_hidden_or_missing_proc_causes_no_wrong_results") {
        return;
    }
    let folder = PublicFolder::new("proc");
    for file in ["ka", "libka_preload.so"] {
        copy_program(release().join(file), folder.join(file));
    }
    copy_program(dynamic(), folder.join("seen"));
    copy_program(fixed(), folder.join("static"));
    let own = Holder::start(&mut Command::new(holder()));
    let pid = own.pid().to_string();
    // The script runs in its own mount namespace. "$0" is the folder with the programs, and "$1" is a PID.
    let run = |how: &str, what: &str| {
        let mut command = command::bare("unshare");
        command.args(user_namespace()).args(["--mount", "sh", "-c"]);
        command.arg(format!("{how} && {what}")).arg(&*folder).arg(&pid);
        let ran = watch(&command);
        check_end(&ran).unwrap_or_else(|why| panic!("{how}, {what}: {why}: {ran:?}"));
        ran
    };
    let is = |ran: &Ran, status: i32, stdout: &str, stderr: &str| {
        assert!(
            ran.status == status && ran.stdout.contains(stdout) && ran.stderr.contains(stderr),
            "not {status} {stdout:?} {stderr:?}: {ran:?}"
        );
    };

    let absent = "mount -t tmpfs none /proc";
    // Without /proc, ka cannot find its own folder, and says where it has looked for the shim.
    let shim = "\"$0/ka\" run --via preload -- \"$0/seen\" listen";
    is(&run(absent, shim), 125, "", "cannot find libka_preload.so: looked for ");
    is(&run(absent, "\"$0/ka\" run -- \"$0/seen\" listen"), 0, STANDARD, "");
    let named = "KA_PRELOAD=\"$0/libka_preload.so\" \"$0/ka\" run --via preload -- \"$0/seen\" listen";
    is(&run(absent, named), 0, STANDARD, "");
    is(&run(absent, "LD_PRELOAD=\"$0/libka_preload.so\" \"$0/seen\" listen"), 0, STANDARD, "");
    is(&run(absent, "\"$0/ka\" attach \"$1\""), 1, "0 sockets set to", "/proc does not show it");
    is(&run(absent, "\"$0/ka\" attach --all"), 1, "0 sockets set to", "/proc");
    is(&run(absent, "\"$0/ka\" check \"$1\""), 1, "", "");
    // The owners of the sockets are unknown, but the kernel's list has their settings.
    is(&run(absent, "\"$0/ka\" ls --json --off"), 1, &own.port.to_string(), "");
    is(&run(absent, "\"$0/ka\" plan --path 350s"), 0, "idle 280", "");

    if !is_root() {
        skip("only root can mount /proc with hidepid");
        return;
    }
    let nobody = "setpriv --reuid 65534 --regid 65534 --clear-groups";
    for (hidden, of_all) in [("hidepid=noaccess", (1, "/proc hides it")), ("hidepid=invisible", (0, ""))] {
        let how = format!("mount -t proc -o {hidden} none /proc");
        is(&run(&how, &format!("{nobody} \"$0/ka\" run -- \"$0/seen\" listen")), 0, STANDARD, "");
        is(&run(&how, &format!("{nobody} \"$0/ka\" run -- \"$0/static\" listen")), 0, STANDARD, "");
        is(&run(&how, &format!("{nobody} \"$0/ka\" attach \"$1\"")), 1, "0 sockets set to", "ka: attach: ");
        is(&run(&how, &format!("{nobody} \"$0/ka\" attach --all")), of_all.0, "", of_all.1);
        is(&run(&how, &format!("{nobody} \"$0/ka\" check \"$1\"")), 1, "", "");
        // The kernel lists sockets of all users. ls must not exit with success, because a monitor would take that for
        // complete.
        is(&run(&how, &format!("{nobody} \"$0/ka\" ls --json --off")), 1, &own.port.to_string(), "");
    }
    let how = "mount -t proc -o hidepid=invisible none /proc";
    is(&run(how, "\"$0/ka\" attach \"$1\""), 0, "3 sockets set to", "");
}

/// The process is killed before each system call of ka. ka reports that it is gone, and nothing worse happens.
#[test]
fn a_process_that_ends_at_any_step_is_reported_as_gone() {
    if !in_own_namespaces("a_process_that_ends_at_any_step_is_reported_as_gone") {
        return;
    }
    for (name, arguments) in [
        ("attach", &["attach"][..]),
        ("attach a task's", &["task", "attach"]),
        ("attach --all", &["attach", "--all", "--json"]),
        ("ls", &["ls", "--json"]),
        ("ls --pid", &["ls", "--json", "--pid"]),
        ("check", &["check"]),
    ] {
        let prepare = || {
            let in_task = arguments[0] == "task";
            let mut program = Command::new(holder());
            let holder = Holder::start(if in_task { program.arg("task") } else { &mut program });
            let mut command = ka();
            command.args(&arguments[usize::from(in_task)..]).env("FAULT_KILL", holder.pid().to_string());
            if !arguments.contains(&"--json") || arguments.contains(&"--pid") {
                command.arg(holder.pid().to_string());
            }
            (command, holder)
        };
        let judge = |_: &Fault, ran: &Ran, _: Holder| match ran.status {
            0 | 1 => Ok(()),
            _ => is_refused(ran, &[2]),
        };
        let name = format!("killed under ka {name}");
        each(&Trial { name: &name, kills: true, missed: 25, ..TRIAL }, prepare, judge);
    }
}

/// When the process is killed, another process gets its PID at once. Once ka has a pidfd of the first process, it
/// never sets sockets of the other.
#[test]
fn a_process_that_reuses_the_pid_is_left_alone() {
    if !in_own_namespaces("a_process_that_reuses_the_pid_is_left_alone") {
        return;
    }
    if fs::write("/proc/sys/kernel/ns_last_pid", "300").is_err() {
        skip("the next PID cannot be chosen here");
        return;
    }
    // A PID belongs to one process at a time, so only one run at a time may use it.
    let one = std::sync::Mutex::new(());
    let taken = AtomicU32::new(0);
    let prepare = || {
        let lock = one.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let victim = Holder::start(&mut Command::new(holder()));
        let (pid, known) = (victim.pid(), scratch("known"));
        let mut command = ka();
        command.args(["attach", &pid.to_string()]);
        command.env("FAULT_KILL", pid.to_string()).env("FAULT_KILLED", &known);
        // This thread waits for the victim, which frees the PID, and starts another process with the same PID.
        let impostor = std::thread::spawn(move || {
            victim.wait();
            let _ = fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string());
            let impostor = Holder::start(&mut Command::new(holder()));
            fs::write(&known, "").unwrap();
            impostor
        });
        (command, (pid, impostor, lock))
    };
    let judge = |fault: &Fault,
                 ran: &Ran,
                 (pid, impostor, lock): (
        i32,
        std::thread::JoinHandle<Holder>,
        std::sync::MutexGuard<'_, ()>,
    )| {
        if !ran.is_injected() {
            // SAFETY: kill takes no pointer.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        let mut impostor = impostor.join().unwrap();
        drop(lock);
        if impostor.pid() != pid {
            return Ok(());
        }
        taken.fetch_add(1, Ordering::Relaxed);
        let set = impostor.look().iter().filter(|options| options.on).count();
        match set {
            0 => Ok(()),
            // Before ka had a pidfd, the PID denoted whichever process had it.
            3 if !fault.had_called("pidfd_open") => Ok(()),
            _ => Err(format!("{set} sockets of another process were set")),
        }
    };
    let name = "killed under ka attach, and its PID reused";
    each(&Trial { name, kills: true, missed: 25, few: 1000, ..TRIAL }, prepare, judge);
    assert!(taken.into_inner() > 10, "no PID was reused");
}

/// The supervised program is killed at each system call of its supervisor. ka must end with its status or with 125.
#[test]
fn ka_ends_when_the_program_is_killed_during_a_supervised_call() {
    let prepare = || {
        let mut command = ka();
        command.args(["run", "--via", "seccomp"]).arg(fixed()).arg("connect").env("FAULT_KILL", "@0.1.0.0");
        (command, ())
    };
    let judge = |_: &Fault, ran: &Ran, ()| match ran.status {
        0 | 125 | 137 => Ok(()),
        _ => Err("ka ended with another status".to_owned()),
    };
    let name = "killed under ka run --via seccomp";
    each(&Trial { name, kills: true, missed: 10, ..TRIAL }, prepare, judge);
}
