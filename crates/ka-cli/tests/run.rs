//! Tests `ka run`: the sockets of the program have the policy, the program is otherwise unchanged, and a program that
//! cannot be reached is not run.

mod command;

use std::fs;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use command::cgroups::in_own_cgroup_tree;
use command::{
    FRESH, Holder, armed, as_nobody, automatic_rto_max, bare, go_build, go_holder, holder, holder_with, ka,
    outcome, raw, source, static_holder,
};
use ka_test::artifact::{release, shim};
use ka_test::child::{Running, preloaded, stdout, succeed};
use ka_test::compiler::{Linkage, cc, compile};
use ka_test::log::skip;
use ka_test::namespace::{in_own_namespaces, is_root, with_own_etc};
use ka_test::path::{PublicFolder, copy_program, scratch, write_script};
use ka_test::server::{nginx, redis_arguments};
use ka_test::socket::{RTO_MAX, fresh as fresh_socket, has_rto_max, is_rounded_rto_max, rto_max};
use ka_test::wait::{eventually, listening};

/// Prints the options that `FRESH` prints, of a socket that listens.
const FRESH_AFTER: &str = "import socket; s = socket.socket(); s.listen(); \
    print(s.getsockopt(1, 9), *(s.getsockopt(6, n) for n in (4, 5, 6, 18)))";

fn fresh(command: &mut Command) -> String {
    stdout(command.args(["--", "python3", "-c", FRESH])).trim().to_owned()
}

#[test]
fn the_sockets_of_the_program_have_the_policy() {
    assert_eq!(fresh(ka().arg("run")), "1 60 10 6 0");
    assert_eq!(fresh(ka().args(["run", "-p", "280,30,5"])), "1 280 30 5 0");
    assert_eq!(
        fresh(ka().args(["run", "-d", "5m", "-i", "7000ms", "-c", "3", "-u", "30s"])),
        "1 300 7 3 30000"
    );
    assert_eq!(fresh(ka().args(["run", "-p", "280,30,5", "--cnt=3", "-u", "auto"])), "1 280 30 3 370000");
    for (policy, values) in [
        ("5m,30,5", "1 300 30 5 0"),
        ("idle=60s", "1 60 10 6 0"),
        ("60, 10, 6", "1 60 10 6 0"),
        ("61:10:6", "1 61 10 6 0"),
        (" 1h : 30s : 5 ", "1 3600 30 5 0"),
        ("idle=2m, user_timeout=500ms", "1 120 10 6 500"),
        ("idle=2m,user_timeout=none", "1 120 10 6 0"),
    ] {
        assert_eq!(fresh(ka().args(["run", "-p", policy])), values, "{policy}");
    }
    for (timeout, milliseconds) in [("500ms", 500), ("0", 0), ("none", 0), ("1000", 1000), ("1m", 60_000)] {
        let values = format!("1 60 10 6 {milliseconds}");
        assert_eq!(fresh(ka().args(["run", "-u", timeout])), values, "{timeout}");
        assert_eq!(fresh(ka().args(["run", "-p", "60,10,6", "-u", timeout])), values, "{timeout}");
    }
    // Flags override the variables, either a part or the whole policy.
    assert_eq!(fresh(ka().env("KA_POLICY", "280,30,5").arg("run")), "1 280 30 5 0");
    assert_eq!(fresh(ka().env("KA_POLICY", "280,30,5").args(["run", "-c", "3"])), "1 280 30 3 0");
    assert_eq!(fresh(ka().env("KA_IDLE", "99").args(["run", "-p", "280,30,5"])), "1 280 30 5 0");
    assert_eq!(fresh(ka().env("KA_IDLE", "99").args(["run", "-p", "cnt=3"])), "1 60 10 3 0");
    assert_eq!(fresh(ka().env("KA_POLICY", "off").args(["run", "-d", "30"])), "1 30 10 6 0");
}

/// The program prints the option of a new socket that listens, and of a listener that it has inherited.
#[test]
fn rto_max_reaches_new_and_inherited_sockets_in_each_way() {
    const PROGRAM: &str = "import socket as s
new = s.socket(); new.listen()
print(*(x.getsockopt(6, 44) for x in (new, s.socket(fileno=0))))";
    if !has_rto_max() {
        return;
    }
    let system = rto_max(fresh_socket().as_raw_fd());
    for way in ["preload", "seccomp"] {
        for (variables, args, expected) in [
            (&[][..], &[][..], system),
            (&[], &["-r", "2000"], 2000),
            (&[], &["--rto-max=2s"], 2000),
            (&[], &["-p", "30,5,3", "-r", "1m"], 60_000),
            (
                &[],
                &["-p", "idle=14,intvl=2,cnt=5,rto_max=auto"],
                automatic_rto_max("idle=14,intvl=2,cnt=5,rto_max=auto"),
            ),
            (&[], &["-r", "auto", "-d", "20"], automatic_rto_max("idle=20,intvl=10,cnt=6,rto_max=auto")),
            (&[("KA_RTO_MAX", "3s")], &[], 3000),
            (&[("KA_RTO_MAX", "3s")], &["-r", "2s"], 2000),
            (&[("KA_RTO_MAX", "3s")], &["-d", "30"], 3000),
            // A whole policy takes nothing from the variables.
            (&[("KA_RTO_MAX", "3s")], &["-p", "30,5,3"], system),
            (&[("KA_RULES", "lport=1-65535 rto_max=4s")], &[], 4000),
        ] {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let mut command = ka();
            command.envs(variables.iter().copied()).args(["run", "--via", way]).args(args);
            command.args(["--", "python3", "-c", PROGRAM]).stdin(std::os::fd::OwnedFd::from(listener));
            let output = command.output().unwrap();
            assert!(output.status.success() && output.stderr.is_empty(), "{way} {args:?}: {output:?}");
            let printed = String::from_utf8(output.stdout).unwrap();
            let values: Vec<i32> = printed.split_whitespace().map(|value| value.parse().unwrap()).collect();
            let is_set = |value: i32| is_rounded_rto_max(value, expected);
            // Before the new socket listens, it has no local port, so the rule does not match.
            let has_rules = variables.iter().any(|(name, _)| *name == "KA_RULES");
            let is_right = match values[..] {
                [new, inherited] => is_set(inherited) && (is_set(new) || (has_rules && new == system)),
                _ => false,
            };
            assert!(is_right, "{way} {variables:?} {args:?}: {printed}");
        }
    }
}

/// The kernel rejects the option, as kernels before Linux 6.15 do. The program has the other values.
#[test]
fn the_other_values_are_set_if_the_kernel_lacks_rto_max() {
    for way in ["preload", "seccomp"] {
        let mut command = command::refusing(libc::SYS_setsockopt, libc::ENOPROTOOPT, Some((2, RTO_MAX)));
        let ka = ka();
        command.arg(ka.get_program()).args(["run", "--via", way, "-p", "30,5,3", "-u", "9s", "-r", "2s"]);
        let printed = stdout(command.args(["--", "python3", "-c", FRESH_AFTER]));
        assert_eq!(printed.trim(), "1 30 5 3 9000", "{way}");
    }
}

/// Creates an /etc/ka.conf with the first shell command, and runs the second. Returns the options of its listener,
/// and the messages.
fn with_file(make: &str, run: &str) -> (String, String) {
    let output = with_own_etc(&format!(
        "{make}; echo look | {} run {run} -- {}",
        release().join("ka").display(),
        holder().display()
    ));
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (options, said) = (text(output.stdout), text(output.stderr));
    let listener =
        options.lines().nth(1).and_then(|line| line.split_once(' ')).map(|(_, values)| values.to_owned());
    (listener.unwrap_or_else(|| panic!("{make}: {run}: {options}{said}")), said)
}

/// A part of a stronger source overrides the same part of a weaker one. A whole policy overrides all parts.
#[test]
fn a_whole_policy_overrides_all_parts_of_ka_conf() {
    if !is_root() {
        skip("only root may have an /etc of its own");
        return;
    }
    for way in ["preload", "seccomp"] {
        for (file, policy, expected) in [
            ("KA_USER_TIMEOUT=5000", "-p 60,10,6", "1 60 10 6 0"),
            ("KA_USER_TIMEOUT=5000", "-p 30,5,3 -u auto", "1 30 5 3 45000"),
            ("KA_IDLE=99\\nKA_INTVL=9", "-p cnt=3", "1 60 10 3 0"),
            ("KA_POLICY=idle=99,user_timeout=7ms", "-p on", "1 60 10 6 0"),
            ("KA_POLICY=off\\nKA_CNT=9", "-p 30,5,3", "1 30 5 3 0"),
            // A flag for one part leaves the other parts to the file.
            ("KA_IDLE=99\\nKA_USER_TIMEOUT=5000", "-c 3", "1 99 10 3 5000"),
            ("KA_IDLE=99\\nKA_USER_TIMEOUT=5000", "", "1 99 10 6 5000"),
        ] {
            let options =
                with_file(&format!("printf '{file}\\n' >/etc/ka.conf"), &format!("--via {way} {policy}"));
            assert_eq!(options, (expected.to_owned(), String::new()), "{way} {file} {policy}");
        }
    }
}

/// The shim and ka print the same message.
#[test]
fn each_way_names_an_ignored_ka_conf() {
    if !in_own_cgroup_tree("each_way_names_an_ignored_ka_conf") {
        return;
    }
    let owner =
        "must be a regular file that belongs to root, readable by all, writable by nobody else; ignored\n";
    for way in ["preload", "seccomp", "cgroup"] {
        for (make, idle, said) in [
            ("true", 99, ""),
            ("chmod o+w /etc/ka.conf", 60, owner),
            ("chown 65534 /etc/ka.conf", 60, owner),
            ("rm /etc/ka.conf; mkdir /etc/ka.conf", 60, owner),
            // read(2) fails with EIO, because no memory is mapped at address 0.
            ("ln -sf /proc/self/mem /etc/ka.conf", 60, owner),
            (
                "yes '# long' | head -c 16384 >>/etc/ka.conf",
                60,
                "must be shorter than 16384 bytes; ignored\n",
            ),
            ("echo IDLE=7 >>/etc/ka.conf", 99, "\"IDLE=7\": must be a KA_ variable and its value; ignored\n"),
        ] {
            let options =
                with_file(&format!("echo KA_IDLE=99 >/etc/ka.conf; {make}"), &format!("--via {way}"));
            let said = if said.is_empty() { String::new() } else { format!("ka: /etc/ka.conf: {said}") };
            assert_eq!(options, (format!("1 {idle} 10 6 0"), said), "{way}: {make}");
        }
    }
}

/// Copies ka, the shim and the holder to where every user can run them.
fn for_every_user(name: &str) -> (PublicFolder, PathBuf, PathBuf) {
    let folder = PublicFolder::new(name);
    for file in ["ka", "libka_preload.so"] {
        copy_program(release().join(file), folder.join(file));
    }
    copy_program(holder(), folder.join("holder"));
    let (ka, holder) = (folder.join("ka"), folder.join("holder"));
    (folder, ka, holder)
}

#[test]
fn each_way_names_an_unreadable_ka_conf_once() {
    if !is_root() {
        skip("only root may have an /etc of its own");
        return;
    }
    let (_folder, ka, holder) = for_every_user("unreadable");
    let (ka, holder) = (ka.display(), holder.display());
    let complaint = "ka: /etc/ka.conf: must be a regular file that belongs to root, readable by all, writable \
                     by nobody else; ignored\n";
    for (command, quiet) in [
        (format!("{ka} run --via preload -- {holder}"), false),
        (format!("{ka} run --via seccomp -- {holder}"), false),
        (format!("{ka} check {holder}"), false),
        (format!("{ka} run --via preload -- {holder}"), true),
        (format!("{ka} run --via seccomp -- {holder}"), true),
        (format!("{ka} check {holder}"), true),
    ] {
        let output = with_own_etc(&format!(
            "echo KA_IDLE=99 >/etc/ka.conf; chmod 600 /etc/ka.conf; export KA_QUIET={}; \
             setpriv --reuid 65534 --regid 65534 --clear-groups {command} </dev/null",
            i32::from(quiet)
        ));
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said, if quiet { "" } else { complaint }, "{command}");
    }
}

#[test]
fn each_way_names_only_misspelled_variables() {
    let wrong = |command: &mut Command| {
        // The last two may belong to the program.
        command.env("KA_POLCY", "1,1,1").env("KA_PRELOADED", "").env("KA_FILE", "x").env("KA_LOG_LEVEL", "9");
        let loud = outcome(command);
        assert_eq!((loud.0, outcome(command.env("KA_QUIET", "1")).2.as_str()), (0, ""));
        loud.2
    };
    let said = "ka: KA_POLCY: unknown variable; did you mean KA_POLICY?\n\
                ka: KA_PRELOADED: unknown variable; did you mean KA_PRELOAD?\n";
    for way in ["auto", "preload", "seccomp"] {
        assert_eq!(wrong(ka().args(["run", "--via", way, "true"])), said, "{way}");
    }
    assert_eq!(wrong(ka().args(["check", "true"])), said);
    assert_eq!(wrong(ka().args(["run", "--via", "seccomp", "true"]).env_clear()), said);
    // A KA_QUIET other than 1 has no effect.
    let said = "ka: KA_QUIET=\"yes\": must be 0 or 1; ignored\n";
    assert_eq!(outcome(ka().args(["run", "true"]).env("KA_QUIET", "yes")).2, said);
    assert_eq!(outcome(ka().args(["check", "true"]).env("KA_QUIET", "yes")).2, said);
    // Correct names cause no message.
    let preload = release().join("libka_preload.so");
    let mut command = ka();
    command.args(["run", "true"]).env("KA_PRELOAD", preload).env("KA_POLICY", "60,10,6");
    assert_eq!(outcome(&mut command), (0, String::new(), String::new()));
}

/// check also names wrong values.
#[test]
fn check_names_wrong_values() {
    assert_eq!(
        outcome(ka().args(["check", "true"]).env("KA_CNT", "999")).2,
        "ka: KA_CNT=\"999\": cnt must be 1..127 probes; ignored\n"
    );
}

/// The shim in the program prints the message.
#[test]
fn run_names_an_unwritable_log_once() {
    let mut command = ka();
    command.args(["run", "--via", "preload", "true"]).env("KA_LOG", "/no/such/folder/log");
    let complaint = "ka: KA_LOG=\"/no/such/folder/log\": must be a file that this user can write; ignored\n";
    assert_eq!(outcome(&mut command), (0, String::new(), complaint.to_owned()));
    assert_eq!(outcome(command.env("KA_QUIET", "1")), (0, String::new(), String::new()));
}

#[test]
fn the_mode_decides_about_calls_of_the_program() {
    let program = "import socket; s = socket.socket(); s.setsockopt(6, 4, 30); s.setsockopt(6, 5, 50); \
                   s.setsockopt(1, 9, 0); print(s.getsockopt(1, 9), s.getsockopt(6, 4), s.getsockopt(6, 5))";
    for (mode, expected) in [("force", "1 60 10\n"), ("floor", "1 30 10\n"), ("default", "0 30 50\n")] {
        assert_eq!(stdout(ka().args(["run", "--mode", mode, "python3", "-c", program])), expected, "{mode}");
    }
}

#[test]
fn ka_becomes_the_program() {
    let child = ka().args(["run", "sh", "-c", "echo $$"]).stdout(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    assert_eq!(String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap(), format!("{pid}\n"));

    assert_eq!(outcome(ka().args(["run", "--", "sh", "-c", "exit 42"])).0, 42);
    let killed = ka().args(["run", "--", "sh", "-c", "kill -USR1 $$"]).status().unwrap();
    assert_eq!(killed.signal(), Some(libc::SIGUSR1));
    // Tests argv[0] of the program, and arguments that look like options of ka.
    let shown = stdout(ka().args(["run", "sh", "-c", "echo \"$0 $@\"", "-v", "--help", "", "-d"]));
    assert_eq!(shown, "-v --help  -d\n");
    let shown = outcome(ka().args(["run", "-v", "-d", "30", "true"]));
    assert_eq!(
        shown.2,
        format!("ka: via preload: {}, idle=30,intvl=10,cnt=6, mode force\n", shim().display())
    );
}

/// Ignored and blocked signals and closed descriptors are inherited unchanged.
#[test]
fn the_program_inherits_signals_and_descriptors_unchanged() {
    const SHOW: &str = "grep -E '^Sig(Ign|Blk)' /proc/self/status; ls /proc/self/fd | tr '\\n' ' '";
    for given in ["", "trap '' PIPE;", "trap '' HUP PIPE;", "exec 0<&-;", "exec 7</dev/null;"] {
        let show = |ka: &str| {
            let script = format!("{given} exec {ka} sh -c \"{SHOW}\"");
            let output = bare("sh").args(["-c", &script]).stdin(Stdio::null()).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        let run = format!("{} run --", release().join("ka").display());
        assert_eq!(show(&run), show(""), "{given}");
    }
}

#[test]
fn other_preloaded_libraries_stay_and_the_shim_is_added_once() {
    let show = ["run", "sh", "-c", "echo $LD_PRELOAD"];
    let (shim, libc) = (shim(), "libc.so.6");
    let both = format!("{}:{libc}\n", shim.display());
    assert_eq!(stdout(ka().args(show)), format!("{}\n", shim.display()));
    assert_eq!(stdout(ka().env("LD_PRELOAD", libc).args(show)), both);
    let own = release().join("ka");
    let nested = [&["run"][..], &[own.to_str().unwrap()], &show].concat();
    assert_eq!(stdout(ka().env("LD_PRELOAD", libc).args(nested)), both);
}

/// Like torsocks, this library looks up socket(2) in the C library itself, which bypasses all libraries after it.
#[test]
fn the_shim_precedes_other_preloaded_libraries() {
    const SOURCE: &str = "#define _GNU_SOURCE\n#include <dlfcn.h>\n#include <sys/socket.h>\n\
        int socket(int domain, int type, int protocol) {\n\
        \x20   void *libc = dlopen(\"libc.so.6\", RTLD_NOLOAD | RTLD_NOW);\n\
        \x20   return ((int (*)(int, int, int))dlsym(libc, \"socket\"))(domain, type, protocol);\n}\n";
    let (source, library) = (scratch("past").with_extension("c"), scratch("libpast.so"));
    fs::write(&source, SOURCE).unwrap();
    succeed(cc().args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source));
    let alone = fresh(bare("env").env("LD_PRELOAD", &library));
    assert!(alone.starts_with("0 "), "{alone}");
    assert_eq!(fresh(ka().env("LD_PRELOAD", &library).arg("run")), "1 60 10 6 0");
}

/// The runtime of `ASan` ends a program in which another library precedes it.
#[test]
fn the_runtime_of_a_sanitizer_stays_first() {
    let source = scratch("clean").with_extension("c");
    fs::write(&source, "int main(void) { return 7; }\n").unwrap();
    let program = compile(cc().arg("-fsanitize=address"), &source, Linkage::Nothing);
    if bare(&program).status().unwrap().code() != Some(7) {
        skip("gcc's AddressSanitizer does not run here");
        return;
    }
    let runtime = stdout(cc().arg("-print-file-name=libasan.so"));
    let runtime = fs::canonicalize(runtime.trim()).unwrap();
    let (status, _, err) =
        outcome(ka().env("LD_PRELOAD", runtime).args(["run", "--via", "preload", "--"]).arg(&program));
    assert_eq!(status, 7, "{err}");
}

/// The loader accepts no path with blanks, colons or $, so ka uses a link. Programs that the program starts find the
/// shim too.
#[test]
fn a_shim_with_a_path_that_the_loader_rejects_is_preloaded_by_a_link() {
    let folder = scratch("a $b: c");
    fs::create_dir(&folder).unwrap();
    copy_program(release().join("ka"), folder.join("ka"));
    copy_program(shim(), folder.join("libka_preload.so"));
    let script = format!("python3 -c '{FRESH}'; cd /; env -u KA_IDLE python3 -c '{FRESH}'");
    for runtime in [None, Some("/no/such/folder"), Some("relative"), Some("/tmp/with blank")] {
        let mut run = bare(folder.join("ka"));
        run.env_remove("XDG_RUNTIME_DIR").args(["run", "-d", "30", "sh", "-c", &script]);
        run.envs(runtime.map(|runtime| ("XDG_RUNTIME_DIR", runtime)));
        let (status, out, err) = outcome(&mut run);
        assert_eq!(
            (status, out.as_str(), err.as_str()),
            (0, "1 30 10 6 0\n1 60 10 6 0\n", ""),
            "{runtime:?}"
        );
    }
    // The links stay for the processes that were started with them. This test removes its own.
    // SAFETY: geteuid(2) has no arguments and cannot fail.
    let user = unsafe { libc::geteuid() };
    for place in ["/run/ka".to_owned(), format!("/tmp/ka-{user}")] {
        for entry in fs::read_dir(&place).into_iter().flatten().flatten() {
            if fs::read_link(entry.path()).is_ok_and(|target| target.starts_with(&folder)) {
                fs::remove_file(entry.path()).unwrap();
            }
        }
        let _ = fs::remove_dir(&place);
    }
}

/// The help mentions a policy that turns keepalive off only for commands that accept one.
#[test]
fn help_mentions_off_only_where_it_is_accepted() {
    for (args, is_taken) in [(&["attach"][..], true), (&["run"], false), (&["cgroup", "attach"], false)] {
        for help in ["-h", "--help"] {
            let text = stdout(ka().args(args).arg(help)).replace('\n', " ");
            let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(text.contains("A whole policy: 60,10,6, or any of idle="), "{text}");
            assert_eq!(text.contains("separated by commas, or off."), is_taken, "{args:?} {help}: {text}");
        }
    }
}

/// Without libka_preload.so, ka takes another way than usual, and reports this.
#[test]
fn run_reports_a_missing_shim_and_its_other_way_once() {
    if Path::new(option_env!("KA_LIBDIR").unwrap_or("/usr/lib/ka")).join("libka_preload.so").exists() {
        skip("libka_preload.so is installed, so it is not missing");
        return;
    }
    let folder = PublicFolder::new("shimless");
    fs::create_dir(folder.join("bin")).unwrap();
    let own = folder.join("bin/ka");
    copy_program(release().join("ka"), &own);
    let place = |place: &str| format!("{}/{place}/libka_preload.so", folder.display());
    let looked = format!("{}, {}, ", place("bin"), place("lib/ka"));
    for flags in [&["run"][..], &["run", "-v"]] {
        let (status, out, err) = outcome(bare(&own).args(flags).args(["python3", "-c", FRESH_AFTER]));
        assert_eq!((status, out.as_str()), (0, "1 60 10 6 0\n"), "{err}");
        let lines: Vec<_> =
            err.lines().filter(|line| line.contains("cannot find libka_preload.so")).collect();
        let [line] = lines[..] else { panic!("{err}") };
        let start = format!("ka: run: cannot find libka_preload.so: looked for {looked}");
        assert!(line.starts_with(&start) && !line.contains(".."), "{line}");
        assert!(line.contains("via seccomp instead: by a supervisor"), "{line}");
        assert!(line.ends_with("name it in KA_PRELOAD, or use --via seccomp"), "{line}");
        assert_eq!(err.lines().count(), if flags.contains(&"-v") { 2 } else { 1 }, "{err}");
    }
    // ka prints nothing if the user asked for seccomp, or if no shim could reach the program.
    assert_eq!(outcome(bare(&own).args(["run", "--via", "seccomp", "true"])).2, "");
    assert_eq!(outcome(bare(&own).arg("run").arg(static_holder())).2, "");
    assert_eq!(outcome(bare(&own).args(["run", "true"]).env("KA_PRELOAD", shim())).2, "");
    if is_root() {
        let err = outcome(&mut as_nobody(bare(&own).args(["run", "true"]))).2;
        assert!(err.lines().count() == 1 && err.contains("no_new_privs"), "{err}");
    }
}

/// ka does not examine the commands of a script. So with -v it names the programs that the shim does not reach.
#[test]
fn run_v_reports_programs_of_scripts_that_preload_does_not_reach() {
    let script = scratch("script.sh");
    write_script(&script, "#!/bin/sh\nexit 0\n");
    let said = format!(
        "ka: {} is a script: preload does not reach static and Go programs that it starts (use --via seccomp)\n",
        script.display()
    );
    for before in [&[][..], &["nice"]] {
        let run = |flags: &[&str]| outcome(ka().args(flags).arg("--").args(before).arg(&script));
        let (status, _, err) = run(&["run", "-v"]);
        assert!(status == 0 && err.ends_with(&said), "{err}");
        assert_eq!(run(&["run"]).2, "");
        assert!(!run(&["run", "-v", "--via", "seccomp"]).2.contains("script"));
    }
    assert!(!outcome(ka().args(["run", "-v", "true"])).2.contains("script"));
}

/// Under sudo, ka does not preload a file into root's programs if another user can replace it.
#[test]
fn a_shim_named_by_the_environment_is_checked() {
    let shim = scratch("shim.so");
    copy_program(ka_test::artifact::shim(), &shim);
    assert_eq!(fresh(ka().env("KA_PRELOAD", &shim).arg("run")), "1 60 10 6 0");
    let (status, _, err) = outcome(ka().env("KA_PRELOAD", "/no/such.so").args(["run", "true"]));
    assert_eq!(status, 125);
    assert!(err.contains("looked for /no/such.so"), "{err}");
    let (status, _, err) = outcome(ka().env("KA_PRELOAD", "/etc/passwd").args(["run", "true"]));
    assert_eq!(status, 125);
    assert!(err.contains("/etc/passwd: not a shared library"), "{err}");
    // Tests other libraries: libka, and the C library, which defines all functions that the shim hooks.
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let libc =
        maps.lines().find_map(|line| line.split_whitespace().nth(5).filter(|path| path.contains("/libc.so")));
    // Tests a library without a SONAME. The shim has none either.
    let (source, plain) = (scratch("plain").with_extension("c"), scratch("plain.so"));
    fs::write(&source, "int socket(void) { return -1; }\n").unwrap();
    succeed(cc().args(["-shared", "-fno-builtin", "-o"]).arg(&plain).arg(&source));
    for other in [release().join("libka.so"), libc.unwrap().into(), plain] {
        for way in ["auto", "preload"] {
            let (status, out, err) = outcome(
                ka().env("KA_PRELOAD", &other).args(["run", "-v", "--via", way, "--", "echo", "started"]),
            );
            assert_eq!((status, out.as_str()), (125, ""), "{}: {err}", other.display());
            assert!(
                err.contains(&format!("{}: this library is not libka_preload.so", other.display())),
                "{err}"
            );
        }
    }
    if !is_root() {
        skip("only root can create a shim that belongs to root");
        return;
    }
    let under_sudo =
        |shim: &Path| outcome(ka().env("KA_PRELOAD", shim).env("SUDO_UID", "1000").args(["run", "true"]));
    assert_eq!(under_sudo(&shim).0, 0);
    fs::set_permissions(&shim, fs::Permissions::from_mode(0o777)).unwrap();
    let (status, _, err) = under_sudo(&shim);
    assert_eq!(status, 125);
    assert!(err.contains("only root may be able to write it"), "{err}");
}

#[test]
fn exit_statuses_distinguish_failures_of_ka_and_of_the_program() {
    let script = scratch("not-executable");
    fs::write(&script, "#!/bin/sh\n").unwrap();
    let not_executable = script.to_str().unwrap();
    for (program, status, message) in [
        (&["no-such-program"][..], 127, "ka: run: no-such-program: no such program on PATH\n"),
        (&["/no/such/program"], 127, "ka: run: /no/such/program: no such program\n"),
        (&["/"], 126, "ka: run: /: is a directory\n"),
        (&["/etc/passwd"], 126, "ka: run: /etc/passwd: Permission denied\n"),
        (&[not_executable], 126, ""),
        (
            &["-d", "0", "true"],
            125,
            "error: invalid value '0' for '--idle <S>': idle must be 1..32767 s (at most 9h 6m 7s)\n",
        ),
        (
            &["-i", "1500ms", "true"],
            125,
            "error: invalid value '1500ms' for '--intvl <S>': must be whole seconds, as 1s\n",
        ),
        (
            &["-c", "128", "true"],
            125,
            "error: invalid value '128' for '--cnt <N>': cnt must be 1..127 probes\n",
        ),
        (
            &["-u", "3000000000", "true"],
            125,
            "error: invalid value '3000000000' for '--user-timeout <MS>': user_timeout must be 0..2147483647 ms (at most 24d 20h 31m 23s)\n",
        ),
        (
            &["-d", "72h", "true"],
            125,
            "error: invalid value '72h' for '--idle <S>': idle must be 1..32767 s (at most 9h 6m 7s)\n",
        ),
        (
            &["-u", "30", "true"],
            125,
            "error: invalid value '30' for '--user-timeout <MS>': write 30ms or 30s\n",
        ),
        (
            &["-p", "idle=30,user_timeout=30", "true"],
            125,
            "error: invalid value 'idle=30,user_timeout=30' for '--policy <TEXT>': \"user_timeout=30\": write 30ms or 30s\n",
        ),
        (
            &["-c", "6s", "true"],
            125,
            "error: invalid value '6s' for '--cnt <N>': must be a number without a unit, as 6\n",
        ),
        (
            &["-p", "60,10", "true"],
            125,
            "error: invalid value '60,10' for '--policy <TEXT>': \"60,10\": numbers without names must be three",
        ),
        (&["-p", "off", "true"], 125, "ka: --policy off: the policy must turn keepalive on here\n"),
        (
            &["-p", "off", "-d", "60", "true"],
            125,
            "ka: --policy off: the policy must turn keepalive on here\n",
        ),
        (
            &["-p", "32767,32767,127", "-u", "auto", "true"],
            125,
            "ka: --user-timeout: user_timeout=auto is more than 2147483647 ms\n",
        ),
        (&["--via", "magic", "true"], 125, "error: invalid value 'magic' for '--via <WAY>'"),
        (&["--no-such-flag", "true"], 125, "error: unexpected argument"),
        (&[], 125, "error: the following required arguments were not provided"),
    ] {
        let (found, out, err) = outcome(ka().arg("run").args(program));
        assert_eq!((found, out.as_str()), (status, ""), "{program:?}: {err}");
        assert!(err.starts_with(message), "{program:?}: {err}");
    }
    assert_eq!(outcome(ka().args(["run", "--help"])).0, 0);
}

/// ka prints one line with the reason, and does not run the program. It never runs a program silently without
/// keepalive.
#[test]
fn programs_that_cannot_be_reached_are_not_run() {
    let folder = PublicFolder::new("unreached");
    let copy = |from: &Path, name: &str, mode: u32| -> PathBuf {
        let to = folder.join(name);
        copy_program(from, &to);
        fs::set_permissions(&to, fs::Permissions::from_mode(mode)).unwrap();
        to
    };
    let foreign = copy(holder(), "foreign", 0o755);
    let mut bytes = fs::read(&foreign).unwrap();
    // Sets e_machine of elf(5) to another architecture (s390x).
    bytes[18..20].copy_from_slice(&[22, 0]);
    fs::write(&foreign, bytes).unwrap();
    let bare_script = folder.join("script");
    write_script(&bare_script, "#!/usr/bin/env -S -i sh\necho run");
    let static_script = folder.join("static-script");
    write_script(&static_script, &format!("#!{}\n", static_holder().display()));
    let pie = holder_with(&mut cc(), &["-static-pie"]);

    let mut cases = vec![
        (static_holder().to_path_buf(), "it is static, so no loader reads LD_PRELOAD"),
        (pie, "it is static-pie, so no loader reads LD_PRELOAD"),
        (
            go_holder().to_path_buf(),
            "it is static, and was built with Go, whose programs make system calls without the C library",
        ),
        (static_script, "it is static, so no loader reads LD_PRELOAD"),
        (foreign, "it is for s390x, but "),
        (bare_script, "env(1) in its #! line removes LD_PRELOAD"),
    ];
    if is_root() {
        let other = copy(holder(), "setuid", 0o755);
        std::os::unix::fs::chown(&other, Some(65534), None).unwrap();
        fs::set_permissions(&other, fs::Permissions::from_mode(0o4755)).unwrap();
        cases.push((other, "it is setuid, so the loader ignores LD_PRELOAD"));
        let other = copy(holder(), "setgid", 0o755);
        std::os::unix::fs::chown(&other, None, Some(65534)).unwrap();
        fs::set_permissions(&other, fs::Permissions::from_mode(0o2755)).unwrap();
        cases.push((other, "it is setgid, so the loader ignores LD_PRELOAD"));
    } else {
        skip("only root can change the owner of a program");
    }
    for (program, why) in cases {
        let (status, out, err) = outcome(ka().args(["run", "-v", "--via", "preload"]).arg(&program));
        assert_eq!((status, out.as_str()), (125, ""), "{}: {err}", program.display());
        assert!(err.starts_with("ka: run: ") && err.contains(why) && err.contains("; use "), "{err}");
        assert_eq!(err.lines().count(), 1, "{err}");
        // A supervisor reaches these programs, so ka runs them without --via.
        if err.contains("it is static") || err.contains("#! line") {
            assert!(err.ends_with("; use ka run without --via, or --via seccomp\n"), "{err}");
            assert_eq!(outcome(ka().arg("run").arg(&program)).0, 0, "{}", program.display());
        }
    }

    let (status, out, err) =
        outcome(ka().args(["run", "--best-effort", "--via", "preload"]).arg(static_holder()));
    assert!(status == 0 && out.starts_with("ready ") && err.contains("it is static"), "{status} {out} {err}");
    assert!(err.ends_with("; running it WITHOUT keepalive\n") && err.lines().count() == 1, "{err}");

    if is_root() {
        let capable = copy(holder(), "capable", 0o755);
        succeed(Command::new("setcap").arg("cap_net_raw=ep").arg(&capable));
        let (ka_copy, _) =
            (copy(&release().join("ka"), "ka", 0o755), copy(&shim(), "libka_preload.so", 0o644));
        let mut run = Command::new(ka_copy);
        run.args(["run"]).arg(&capable);
        let (status, _, err) = outcome(&mut as_nobody(&run));
        assert_eq!(status, 125, "{err}");
        assert!(err.contains("it has file capabilities, so the loader ignores LD_PRELOAD"), "{err}");
        // Root has all capabilities anyway.
        assert_eq!(outcome(ka().arg("run").arg(&capable)).0, 0);
    }
}

const OWN_CALLS: &str = "makes system calls without the C library: neither it nor its libraries import socket, connect, listen or accept";

/// The shim replaces functions of the C library. A program with its own system-call instructions does not call them.
#[test]
fn programs_with_system_calls_of_their_own_are_run_under_a_supervisor() {
    for optimized in ["-O0", "-O2"] {
        let program = raw(&[optimized]);
        assert!(stdout(&mut preloaded(&program)).starts_with("0 "), "the shim reaches it");
        let (status, out, err) = outcome(ka().args(["run", "-v", "-d", "97"]).arg(&program));
        assert_eq!((status, out.as_str()), (0, "1 97 10 6 0\n"), "{optimized}: {err}");
        let expected =
            format!("ka: preload does not reach the program: {}: it {OWN_CALLS}\n", program.display());
        assert!(err.starts_with(&expected), "{err}");
        let (status, out, err) = outcome(ka().args(["run", "--via", "preload"]).arg(&program));
        assert_eq!((status, out.as_str()), (125, ""), "{err}");
        assert!(err.contains(OWN_CALLS), "{err}");
        assert!(err.ends_with("; use ka run without --via, or --via seccomp\n"), "{err}");
    }
    // ka uses preload for programs without system-call instructions for sockets, and for programs that also import the
    // C library's functions.
    for program in
        [raw(&["-O2", "-DOTHER"]), "true".into(), "sh".into(), "env".into(), raw(&["-O2", "-DBOTH"])]
    {
        let (status, _, err) = outcome(ka().args(["run", "-v"]).arg(&program));
        assert_eq!(status, 0);
        assert!(err.starts_with("ka: via preload: "), "{}: {err}", program.display());
    }
}

/// ka finds a library with system-call instructions in the same places as the loader.
#[test]
fn libraries_with_system_calls_of_their_own_are_found_as_the_loader_finds_them() {
    const RUNPATH: &str = "-Wl,-rpath,$ORIGIN/lib,--enable-new-dtags";
    const RPATH: &str = "-Wl,-rpath,${ORIGIN}/none:${ORIGIN}/lib,--disable-new-dtags";
    let folder = scratch("libraries");
    let below = folder.join("lib");
    fs::create_dir_all(&below).unwrap();
    let source = source("raw");
    let library = below.join("libraw.so");
    let build = |compiler: &str, flags: &[&str]| {
        let mut command = Command::new(compiler);
        command.args(["-O2", "-fPIC", "-shared", "-DLIBRARY", "-o"]).arg(&library).arg(&source);
        succeed(&mut command);
        let program = folder.join("program");
        let mut command = Command::new(compiler);
        command.args(["-O2", "-DPROGRAM", "-o"]).arg(&program).arg(&source).arg("-L").arg(&below);
        succeed(command.arg("-lraw").args(flags));
        program
    };
    let judged = |what: &str, run: &mut Command, program: &Path| {
        let (status, out, err) = outcome(run.args(["run", "-v", "-d", "97"]).arg(program));
        assert_eq!((status, out.as_str()), (0, "1 97 10 6 0\n"), "{what}: {err}");
        assert!(err.contains(&format!("libraw.so {OWN_CALLS}\n")), "{what}: {err}");
    };
    for compiler in ["cc", "musl-gcc"] {
        for flag in [RUNPATH, RPATH] {
            judged(&format!("{compiler} {flag}"), &mut ka(), &build(compiler, &[flag]));
        }
        let program = build(compiler, &[]);
        let path = format!("/none:{}", below.display());
        judged(&format!("{compiler} LD_LIBRARY_PATH"), ka().env("LD_LIBRARY_PATH", &path), &program);
    }
    let program = build("cc", &[]);
    if is_root() {
        let script = format!(
            "mount -t tmpfs none /var/cache/ldconfig && echo {} >/etc/ld.so.conf.d/ka-test.conf && ldconfig && \
             exec {} run -d 97 {}",
            below.display(),
            release().join("ka").display(),
            program.display()
        );
        let output = with_own_etc(&script);
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert_eq!(said, "1 97 10 6 0\n", "ld.so.cache");
    } else {
        skip("only root writes /etc/ld.so.cache");
    }
    // A missing library does not change the way, and check names the library.
    let (_, text, _) = outcome(ka().arg("check").arg(&program));
    let unread = format!("cannot find or read libraw.so, to which {} is linked", program.display());
    assert!(text.contains(&unread), "{text}");
    assert!(text.contains("\npreload  yes  "), "{text}");
    fs::write(&library, "no library").unwrap();
    let (_, text, _) = outcome(ka().arg("check").arg(&program).env("LD_LIBRARY_PATH", &below));
    assert!(text.contains(&unread), "{text}");
}

#[test]
fn a_program_linked_to_a_go_library_is_run_under_a_supervisor() {
    let folder = scratch("go-library");
    fs::create_dir(&folder).unwrap();
    let library = folder.join("libraw.so");
    go_build("library", true, &["-buildmode=c-shared"], &library);
    let rpath = format!("-Wl,-rpath,{}", folder.display());
    let source = source("raw");
    let program = folder.join("program");
    let mut command = cc();
    command.args(["-DPROGRAM", "-o"]).arg(&program).arg(source).arg("-L").arg(&folder);
    succeed(command.args(["-lraw", &rpath]));
    let (status, out, err) = outcome(ka().args(["run", "-v", "-d", "97"]).arg(&program));
    assert_eq!((status, out.as_str()), (0, "1 97 10 6 0\n"), "{err}");
    let why = format!("it is linked to {}, which was built with Go", library.display());
    assert!(err.contains(&why), "{err}");
    let (_, text, _) = outcome(ka().arg("check").arg(&program));
    assert!(text.contains(&format!("\n  {}", &why[6..])) && text.contains("\npreload  no   "), "{text}");
}

/// If a program is the client of a running server, ka does not reach the server. `ka run -v` and `ka check` report
/// this.
#[test]
fn clients_of_servers_are_named() {
    let folder = scratch("clients");
    fs::create_dir(&folder).unwrap();
    let hint = |name: &str, launcher: &[&str], arguments: &[&str], verbose: bool| {
        let client = folder.join(name);
        write_script(&client, "#!/bin/sh\n");
        let mut run = ka();
        run.arg("run").args(verbose.then_some("-v")).arg("--").args(launcher).arg(client).args(arguments);
        let (status, _, err) = outcome(&mut run);
        assert_eq!(status, 0, "{err}");
        err.contains(&format!("ka: {name}: it may hand its work to "))
            && err.contains("ka attach --follow PID")
    };
    for (name, arguments) in [
        ("tmux", &[][..]),
        ("screen", &[]),
        ("docker", &["ps"]),
        ("adb", &["devices"]),
        ("systemd-run", &["sh"]),
        ("ssh", &["-F", "none", "-oControlPath=/x", "host"]),
    ] {
        assert!(hint(name, &[], arguments, true), "{name}");
        assert!(hint(name, &["nice", "-n", "1"], arguments, true), "{name}");
        assert!(!hint(name, &[], arguments, false), "{name}");
    }
    for (name, arguments) in [
        ("systemd-run", &["--scope", "sh"][..]),
        ("ssh", &["-F", "none", "host"]),
        ("ssh", &["-F", "none", "-o", "ControlPath=none", "host"]),
        ("other", &[]),
    ] {
        assert!(!hint(name, &[], arguments, true), "{name} {arguments:?}");
    }
    let (_, text, _) = outcome(ka().arg("check").arg(folder.join("tmux")));
    assert!(text.contains("\n  it may hand its work to the tmux server"), "{text}");
}

#[test]
fn variables_that_disable_ka_are_reported() {
    let (status, out, err) = outcome(ka().env("KA_POLICY", "off").args(["run", "echo", "hi"]));
    assert_eq!((status, out.as_str()), (125, ""), "{err}");
    assert!(err.contains("KA_POLICY=off"), "{err}");
    let (status, _, err) = outcome(ka().env("KA_SKIP", "chrome,ec?o").args(["run", "echo", "hi"]));
    assert_eq!(status, 125, "{err}");
    assert!(err.contains("KA_SKIP=chrome,ec?o"), "{err}");
    let (status, out, err) =
        outcome(ka().env("KA_SKIP", "echo").args(["run", "--best-effort", "echo", "hi"]));
    assert_eq!((status, out.as_str()), (0, "hi\n"));
    assert!(err.ends_with("; running it WITHOUT keepalive\n") && err.lines().count() == 1, "{err}");
}

#[test]
fn scripts_and_other_libraries_are_reached() {
    let script = scratch("script");
    write_script(&script, &format!("#!/usr/bin/env python3\n{FRESH}\n"));
    assert_eq!(stdout(ka().arg("run").arg(&script)), "1 60 10 6 0\n");
    // Tests a script without #!, which execvp(3) runs by the shell.
    fs::write(&script, format!("python3 -c '{FRESH}'; echo $0 $1\n")).unwrap();
    assert_eq!(
        stdout(ka().arg("run").arg(&script).arg("x")),
        format!("1 60 10 6 0\n{} x\n", script.display())
    );

    let musl = holder_with(&mut Command::new("musl-gcc"), &[]);
    Holder::start(ka().args(["run", "-d", "90"]).arg(musl)).assert_all(90, 10, 6);
    Holder::start(ka().args(["run", "-d", "90"]).arg(holder())).assert_all(90, 10, 6);
}

#[test]
fn the_program_has_the_terminal() {
    // script(1) provides a terminal.
    let command = format!("{} run -- sh -c 'test -t 0 && tty'", release().join("ka").display());
    let output = stdout(bare("script").args(["-qec", &command, "/dev/null"]));
    assert!(output.starts_with("/dev/pts/"), "{output}");
}

#[test]
fn run_sets_sockets_of_nginx_and_redis() {
    // The workers of nginx survive the sudden end of their master, but not the end of the PID namespace.
    if !in_own_namespaces("run_sets_sockets_of_nginx_and_redis") {
        return;
    }
    let conf = nginx("listen 127.0.0.1:8080;");
    let _nginx = Running::start(ka().args(["run", "nginx", "-c"]).arg(conf));
    listening(8080);
    let _redis = Running::start(ka().args(["run", "redis-server"]).args(redis_arguments("0")));
    listening(6379);
    // The servers' ends have the policy, and the clients' ends do not.
    let _clients = [8080, 6379].map(|port| std::net::TcpStream::connect(("127.0.0.1", port)).unwrap());
    eventually("both servers' ends have a keepalive of 60 s", || armed(60.0) == (4, 2));
}
