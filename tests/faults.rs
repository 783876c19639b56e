//! Makes each system call of libka and of the shim fail once, with each errno that it can have.
//!
//! Then a call of libka must report that errno, and leave the socket unchanged. A program under the shim must see no
//! difference, and each of its sockets must have either the whole policy or no part of it.

use std::collections::BTreeSet;
use std::process::Command;

use ka_test::child::{preloaded, stdout};
use ka_test::compiler::{Linkage, cc, compile, program};
use ka_test::fault::{Fault, Ran, TRIAL, Trial, each, name};
use ka_test::path::{root, scratch};

/// Returns whether libka may report this errno for the injected one. For a missing option, the kernel has ENOPROTOOPT
/// and EOPNOTSUPP. libka may report EOPNOTSUPP for both.
fn is_reported(errno: i32, fault: &Fault) -> bool {
    errno == fault.errno || (errno == libc::EOPNOTSUPP && fault.errno == libc::ENOPROTOOPT)
}

/// The calls that only read, and the calls that write.
const READERS: [&str; 8] = [
    "is_enabled",
    "get_idle",
    "get_intvl",
    "get_cnt",
    "get_user_timeout",
    "get_rto_max",
    "query",
    "get_status",
];
const WRITERS: [&str; 14] = [
    "enable",
    "disable",
    "set_user_timeout",
    "set_user_timeout_auto",
    "set_rto_max",
    "set_rto_max_auto",
    "idle=30,intvl=3,cnt=2",
    "idle=30,intvl=3,cnt=2,user_timeout=auto",
    "off,idle=30,intvl=3,cnt=2,user_timeout=7000",
    "keep,intvl=3,user_timeout=0",
    "idle=30,intvl=3,cnt=2,rto_max=auto",
    "off,idle=30,intvl=3,cnt=2,user_timeout=7000,rto_max=7000",
    "keep,intvl=3,rto_max=1000",
    "keep",
];

/// Returns the result and errno that tests/c/outcome.c has printed, and the rest of its output.
fn parse_output(ran: &Ran) -> Option<(i32, i32, &str)> {
    let (first, rest) = ran.stdout.split_once('\n')?;
    let (result, errno) = first.split_once(' ')?;
    Some((result.parse().ok()?, errno.parse().ok()?, rest))
}

#[test]
fn failed_calls_report_the_first_errno_and_leave_the_socket_unchanged() {
    let outcome = program("outcome", Linkage::Shared);
    let options = ["-x", name(&outcome), "-m", "-s", "3"];
    for start in ["on", "off"] {
        for call in READERS.iter().chain(&WRITERS) {
            let prepare = || {
                let mut command = Command::new(&outcome);
                command.args([start, call]);
                (command, ())
            };
            let judge = |fault: &Fault, ran: &Ran, ()| {
                let (Some((result, errno, printed)), [before, .., after]) =
                    (parse_output(ran), &ran.sockets[..])
                else {
                    return Err(format!("the program ended with status {}", ran.status));
                };
                // If /proc does not show tcp_retries2, KA_AUTO takes its default.
                let is_proc = call.contains("auto") && ["openat", "read", "close"].contains(&fault.name());
                if is_proc && result == 0 && after[5] != before[5] {
                    return Ok(());
                }
                if result != -1 || !is_reported(errno, fault) {
                    // If the kernel has no user timeout or no rto_max, ka_query reports none and succeeds.
                    let is_missing = [libc::EOPNOTSUPP, libc::ENOPROTOOPT].contains(&fault.errno);
                    // A filter of an older program may reject an rto_max, which it does not know, with any errno.
                    let settings = format!(" {} 600 60 6 60000 -1 ", if start == "on" { 1 } else { 2 });
                    let is_none =
                        *call == "query" && result == 0 && (is_missing || printed.contains(&settings));
                    return if is_none { Ok(()) } else { Err(format!("result {result}, errno {errno}")) };
                }
                // If keepalive is off, the timers may have changed, but SO_KEEPALIVE and the values that govern data
                // may not.
                let kept = |values: &[i32; 6]| (values[0], values[4], values[5]);
                if before == after || (start == "off" && kept(before) == kept(after)) {
                    Ok(())
                } else {
                    Err(format!("{before:?} became {after:?}"))
                }
            };
            let name = format!("libka: {call} on a socket that is {start}");
            each(&Trial { name: &name, options: &options, ..TRIAL }, prepare, judge);
            // If the calls that restore the socket fail too, the first errno is reported.
            let judge = |fault: &Fault, ran: &Ran, ()| match parse_output(ran) {
                Some((-1, errno, _)) if is_reported(errno, fault) => Ok(()),
                Some((0, ..))
                    if call.contains("auto") && ["openat", "read", "close"].contains(&fault.name()) =>
                {
                    Ok(())
                }
                _ => Err("not the first errno".to_owned()),
            };
            if WRITERS.contains(call) {
                let then = Some(libc::EDOM);
                each(&Trial { name: &name, options: &options, then, ..TRIAL }, prepare, judge);
            }
        }
    }
}

/// If a system call of a probe fails, the probe reports its errno, or does not need the call. The settings are put
/// back, except for the one whose write failed.
#[test]
fn ka_probe_puts_the_settings_back_after_failed_calls() {
    let outcome = program("outcome", Linkage::Shared);
    let options = ["-x", name(&outcome), "-m", "-s", "3"];
    for start in ["on", "off"] {
        let prepare = || {
            let mut command = Command::new(&outcome);
            command.args([start, "probe"]);
            (command, ())
        };
        let judge = |fault: &Fault, ran: &Ran, ()| {
            let (Some((result, errno, _)), [before, .., after]) = (parse_output(ran), &ran.sockets[..])
            else {
                return Err(format!("the program ended with status {}", ran.status));
            };
            let changed = before.iter().zip(after).filter(|(before, after)| before != after).count();
            let is_unrestored = fault.name() == "setsockopt" && result == -1 && changed == 1;
            match (result, changed) {
                (-1, _) if !is_reported(errno, fault) => Err(format!("errno {errno}")),
                (-1 | 1, 0) => Ok(()),
                _ if is_unrestored => Ok(()),
                _ => Err(format!("result {result}, {before:?} became {after:?}")),
            }
        };
        // The number of reads of the state depends on the time of the answer.
        let name = format!("libka: probe on a socket that is {start}");
        each(&Trial { name: &name, options: &options, few: 30, missed: 75, ..TRIAL }, prepare, judge);
    }
}

/// If setting a timer fails, only that timer is missed. The call fails only if `SO_KEEPALIVE` cannot be set.
#[test]
fn ka_enable_lenient_misses_only_the_timer_that_fails() {
    let outcome = program("outcome", Linkage::Shared);
    let options = ["-x", name(&outcome), "-m", "-s", "3"];
    for start in ["on", "off"] {
        for then in [None, Some(libc::EDOM)] {
            let prepare = || {
                let mut command = Command::new(&outcome);
                command.args([start, "enable_lenient"]);
                (command, ())
            };
            let judge = |fault: &Fault, ran: &Ran, ()| {
                let (Some((result, errno, _)), [before, .., after]) = (parse_output(ran), &ran.sockets[..])
                else {
                    return Err(format!("the program ended with status {}", ran.status));
                };
                if result == -1 {
                    let is_right = is_reported(errno, fault) || then == Some(errno);
                    let is_as_it_was = before[0] == after[0] && before[4] == after[4];
                    // tests/c/lenient.c shows that a timer's other errnos are not reported.
                    return if is_right && is_as_it_was {
                        Ok(())
                    } else {
                        Err(format!("errno {errno}, {before:?} became {after:?}"))
                    };
                }
                let wanted = [30, 3, 2];
                let is_right = (0..3).all(|n| {
                    let is_missed = result & 1 << n != 0;
                    after[n + 1] == if is_missed { before[n + 1] } else { wanted[n] }
                });
                if after[0] == 1 && is_right && before[4] == after[4] {
                    Ok(())
                } else {
                    Err(format!("result {result}, and {before:?} became {after:?}"))
                }
            };
            let name = format!("libka: enable_lenient on a socket that is {start}");
            each(&Trial { name: &name, options: &options, then, ..TRIAL }, prepare, judge);
        }
    }
}

/// If /proc fails, `ka_defaults` uses a socket, and `ka_data_time` the kernel's defaults. If getrandom(2) fails,
/// `ka_beat_nonce` reads /dev/urandom.
#[test]
fn defaults_data_times_and_nonces_have_a_fallback() {
    let outcome = program("outcome", Linkage::Shared);
    let options = ["-x", name(&outcome), "-m"];
    for call in ["defaults", "data_time", "beat_nonce"] {
        let prepare = || {
            let mut command = Command::new(&outcome);
            command.args(["off", call]);
            (command, ())
        };
        let (mut command, ()) = prepare();
        let without = stdout(&mut command);
        let judge = |fault: &Fault, ran: &Ran, ()| match parse_output(ran) {
            Some((0, ..)) if ran.stdout == without => Ok(()),
            // Without /proc, ka_data_time takes the defaults of the kernel, 924.6 s.
            Some((0, _, rest)) if call == "data_time" && rest.ends_with(" 924600\n") => Ok(()),
            // If a sandbox rejects getrandom(2), ka_beat_nonce may report its errno.
            Some((-1, errno, _)) if call == "beat_nonce" && errno == fault.errno => Ok(()),
            _ => Err("the call does not use its fallback".to_owned()),
        };
        each(&Trial { name: &format!("libka: {call}"), options: &options, ..TRIAL }, prepare, judge);
    }
}

/// Returns the lines about the program's own calls, and the lines with the settings of its sockets.
fn parted(printed: &str) -> (Vec<&str>, Vec<&str>) {
    printed.lines().partition(|line| !line.contains(": "))
}

#[test]
fn programs_do_not_see_failed_calls_of_the_shim() {
    let source = root().join("tests/c/preload/service.c");
    let service = compile(&mut cc(), &source, Linkage::Nothing);
    let alone = stdout(&mut Command::new(&service));
    let log = scratch("log");
    let options = ["-x", name(&service), "-o", "libka_preload.so"];
    for (mode, rules) in
        [("force", ""), ("floor", ""), ("default", ""), ("force", "peer=10.0.0.0/8 skip; lport=1-1023 skip")]
    {
        let prepare = || {
            let mut command = preloaded(&service);
            command.env("KA_MODE", mode).env("KA_RULES", rules).env("KA_LOG", &log).env("KA_SKIP", "nobody");
            command.env("KA_CNT", "wrong");
            (command, ())
        };
        let (mut command, ()) = prepare();
        let under = stdout(&mut command);
        let policy = parted(&under).1.iter().map(|line| line.split_once(": ").unwrap().1).collect::<Vec<_>>();
        let fine: BTreeSet<&str> = policy.iter().copied().collect();
        let judge = |_: &Fault, ran: &Ran, ()| {
            if ran.status != 0 {
                return Err("the status differs from a run without the shim".to_owned());
            }
            if parted(&ran.stdout).0 != parted(&alone).0 {
                return Err("the results differ from a run without the shim".to_owned());
            }
            let states = parted(&ran.stdout).1;
            // A socket is off, or it has the whole policy, or the settings of the program itself.
            let is_whole = |line: &&str| {
                let values = line.split_once(": ").map_or("", |(_, values)| values);
                let is_its_own = values.starts_with("1 300 10 6 ");
                values.starts_with('0')
                    || fine.contains(values)
                    || values.starts_with("1 60 10 6 ")
                    || is_its_own
            };
            match states.iter().find(|line| !is_whole(line)) {
                Some(line) => Err(format!("a socket has half a policy: {line}")),
                None => Ok(()),
            }
        };
        let name = format!("shim: mode {mode}, rules {rules:?}");
        each(&Trial { name: &name, options: &options, signals: true, ..TRIAL }, prepare, judge);
    }
}

/// If a program opens a library with RTLD_DEEPBIND, the shim binds it to the hooks. If that fails, the library must
/// stay as the loader has bound it.
#[test]
fn a_library_is_usable_if_a_call_fails_while_it_is_bound() {
    let source = |name: &str| root().join("tests/c/preload").join(name);
    let program = compile(&mut cc(), &source("deepbind.c"), Linkage::Nothing);
    let flags = ["-shared", "-fPIC", "-Wl,-z,now", "-Wl,-z,relro"];
    let plugin = compile(cc().args(flags), &source("plugin.c"), Linkage::Nothing);
    let prepare = || {
        let mut command = preloaded(&program);
        command.arg("sockets").arg(&plugin).args(["now", "deepbind"]);
        (command, ())
    };
    let judge = |_: &Fault, ran: &Ran, ()| {
        let is_whole = |line: &str| line.ends_with(": 1 60 10 6 0") || line.contains(": 0 ");
        if ran.status == 0 && ran.stdout.lines().count() == 6 && ran.stdout.lines().all(is_whole) {
            Ok(())
        } else {
            Err("a socket has half a policy".to_owned())
        }
    };
    let options = ["-x", name(&program), "-o", "libka_preload.so"];
    each(&Trial { name: "shim: a library is opened", options: &options, ..TRIAL }, prepare, judge);
}

/// The kernel must reject a wrong pointer, even if the shim cannot find out that the pointer is wrong.
#[test]
fn a_wrong_pointer_is_never_read() {
    let source = root().join("tests/c/preload/service.c");
    let service = compile(&mut cc(), &source, Linkage::Nothing);
    let alone = stdout(Command::new(&service).arg("wild"));
    let prepare = || {
        let mut command = preloaded(&service);
        command.arg("wild");
        (command, ())
    };
    let judge = |_: &Fault, ran: &Ran, ()| {
        if (ran.status, &ran.stdout) == (0, &alone) {
            Ok(())
        } else {
            Err("the output differs from a run without the shim".to_owned())
        }
    };
    let options = ["-x", name(&service), "-o", "libka_preload.so"];
    // The kernel reports ENOPROTOOPT only after it has read the arguments, so never for a wrong pointer.
    let never = &[("getsockopt", libc::ENOPROTOOPT)][..];
    each(&Trial { name: "shim: wrong pointers", options: &options, never, ..TRIAL }, prepare, judge);
}

/// The calls have right and wrong arguments.
#[test]
fn random_calls_return_the_same_with_and_without_the_shim() {
    let calls = compile(&mut cc(), &root().join("crates/ka-cli/tests/c/calls.c"), Linkage::Nothing);
    let options = ["-x", name(&calls), "-o", "libka_preload.so"];
    for (seed, mode) in [("1", "force"), ("2", "default")] {
        let alone = stdout(Command::new(&calls).args([seed, "120"]));
        let prepare = || {
            let mut command = preloaded(&calls);
            command.env("KA_MODE", mode).args([seed, "120"]);
            (command, ())
        };
        let judge = |_: &Fault, ran: &Ran, ()| {
            if (ran.status, &ran.stdout) == (0, &alone) {
                Ok(())
            } else {
                Err("the output differs from a run without the shim".to_owned())
            }
        };
        let name = format!("shim: random calls, mode {mode}");
        each(&Trial { name: &name, options: &options, few: 40, signals: true, ..TRIAL }, prepare, judge);
    }
}
