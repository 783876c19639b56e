//! Tests `ka check`, `plan`, `defaults`, `completions` and the manual pages. Their statements must be true, and the
//! target programs must accept the text that they print for pasting.

mod command;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use command::json::{assert_described, described};
use command::{
    Holder, WaitingProgram, as_nobody, bare, go_holder, holder, ka, outcome, raw, refusing, static_holder,
};
use ka_test::artifact::{release, shim};
use ka_test::child::{preloaded, stdout, succeed};
use ka_test::compiler::{Linkage, cc, compile};
use ka_test::kernel::sysctl;
use ka_test::log::skip;
use ka_test::namespace::{in_own_network_namespace, is_root, with_own_etc};
use ka_test::path::{PublicFolder, copy_program, scratch};
use ka_test::process::state;
use ka_test::server::nginx;
use ka_test::socket::has_rto_max;
use ka_test::wait::eventually;
use serde_json::{Value, json};

fn json_of(command: &mut Command) -> Value {
    let (_, out, err) = outcome(command);
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{err}"))
}

fn way<'a>(report: &'a Value, name: &str) -> &'a Value {
    let ways = report["ways"].as_array().unwrap();
    ways.iter().find(|way| way["way"] == name).unwrap_or_else(|| panic!("{report}"))
}

#[test]
fn check_names_the_ways_that_reach_a_program() {
    for (program, preloaded, fact) in [
        (Path::new("nginx"), true, "dynamic, its loader is "),
        (holder(), true, "dynamic, its loader is "),
        (static_holder(), false, "static"),
        (go_holder(), false, "built with Go"),
    ] {
        let (found, text, err) = outcome(ka().arg("check").arg(program));
        assert_eq!((found, err.as_str()), (0, ""), "{text}");
        assert!(text.contains(fact), "{text}");
        let report = json_of(ka().args(["check", "--json"]).arg(program));
        assert_eq!(way(&report, "preload")["reaches"], preloaded, "{report}");
        assert_eq!(way(&report, "seccomp")["reaches"], true, "{report}");
        // Children of the program may differ from it.
        let children = text.contains("does not reach static, Go and 32-bit programs that it starts");
        assert_eq!(children, preloaded, "{text}");
        // The suggested command works.
        let command = report["command"].as_str().unwrap();
        assert!(command.contains("ka run -- "), "{command}");
    }
    let (status, _, err) = outcome(ka().args(["check", "no-such-program"]));
    assert_eq!((status, err.as_str()), (127, "ka: check: no-such-program: no such program on PATH\n"));
}

/// check reports, to root too, that a program gets more rights than its user. It does not suggest ways that the
/// kernel denies for such a program.
#[test]
fn check_reports_programs_with_more_rights() {
    if !is_root() {
        skip("only root makes setuid programs");
        return;
    }
    let folder = PublicFolder::new("rights-of-their-own");
    let (own, setuid, capable) = (folder.join("ka"), folder.join("setuid"), folder.join("capable"));
    copy_program(release().join("ka"), &own);
    for program in [&setuid, &capable] {
        copy_program("/bin/true", program);
    }
    fs::set_permissions(&setuid, fs::Permissions::from_mode(0o4755)).unwrap();
    succeed(Command::new("setcap").arg("cap_net_raw+ep").arg(&capable));
    for (program, mark) in
        [(&setuid, "it is setuid: it always runs as user 0"), (&capable, "it has file capabilities")]
    {
        let report = json_of(ka().args(["check", "--json"]).arg(program));
        let facts = report["facts"].to_string();
        assert!(facts.contains(mark) && facts.contains("fewer privileges"), "{report}");
        assert_eq!(way(&report, "attach")["reaches"], true, "{report}");
        let report = json_of(&mut as_nobody(bare(&own).args(["check", "--json"]).arg(program)));
        assert!(report["facts"].to_string().contains(mark), "{report}");
        assert_eq!(way(&report, "attach")["reaches"], false, "{report}");
        assert!(report["command"].as_str().unwrap().contains("& sudo ka attach --follow $!"), "{report}");
    }
}

/// Each way is available, or check names what it lacks. The exit status says whether all are available.
#[test]
fn check_reports_the_available_ways() {
    let report = json_of(ka().arg("check").arg("--json"));
    assert!(report["command"].is_null() && report["facts"].as_array().unwrap().len() == 6, "{report}");
    assert_eq!(way(&report, "preload")["reaches"], true);
    let ways = report["ways"].as_array().unwrap();
    let all = ways.iter().all(|way| way["reaches"] == true);
    assert_eq!(outcome(ka().arg("check")).0, i32::from(!all));
    let folder = PublicFolder::new("doctor");
    copy_program(release().join("ka"), folder.join("ka"));
    if !is_root() {
        skip("only root can become another user");
        return;
    }
    let (status, out, _) = outcome(&mut as_nobody(Command::new(folder.join("ka")).arg("check")));
    assert_eq!(status, 1);
    for line in [
        "preload  no      cannot find libka_preload.so: looked for ",
        "bpf      no      needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN (run ka as root)",
    ] {
        assert!(out.contains(line), "{out}");
    }
}

/// Tests the suggested command in a shell, for a path with a blank.
#[test]
fn the_command_that_check_suggests_works() {
    let odd = scratch("it's odd");
    copy_program(holder(), &odd);
    let report = json_of(ka().args(["check", "--json"]).arg(&odd));
    let command = report["command"].as_str().unwrap().replace("ka run", "exec \"$KA\" run");
    let mut shell = bare("sh");
    Holder::start(shell.args(["-c", &command]).env("KA", release().join("ka"))).assert_all(60, 10, 6);
}

#[test]
fn check_names_the_ways_that_reach_a_process() {
    let running = Holder::start(&mut Command::new(holder()));
    let pid = running.pid().to_string();
    let report = json_of(ka().args(["check", "--json", &pid]));
    assert_eq!(way(&report, "attach")["reaches"], true);
    assert_eq!(way(&report, "preload")["reaches"], false);
    assert_eq!(report["command"], format!("ka attach --follow {pid}"));
    assert_eq!(report["facts"][1], "3 TCP sockets, 3 of them without keepalive");
    assert_eq!(outcome(ka().args(["check", &pid])).0, 0);

    let preloaded = Holder::start(ka().arg("run").arg(holder()));
    let report = json_of(ka().args(["check", "--json", &preloaded.pid().to_string()]));
    assert_eq!(way(&report, "preload")["reaches"], true, "{report}");
    assert_eq!(report["facts"][2], "3 TCP sockets, 0 of them without keepalive");

    let (status, _, err) = outcome(ka().args(["check", "99999999"]));
    assert_eq!((status, err.as_str()), (2, "ka: check: 99999999: there is no such process\n"));
    if !is_root() {
        skip("only root can become another user");
        return;
    }
    let folder = PublicFolder::new("check");
    copy_program(release().join("ka"), folder.join("ka"));
    let (status, out, _) = outcome(&mut as_nobody(Command::new(folder.join("ka")).args(["check", &pid])));
    assert_eq!(status, 1);
    assert!(out.contains("attach   no      it belongs to user 0: needs CAP_SYS_PTRACE"), "{out}");
    assert!(out.contains("sudo ka attach --follow"), "{out}");
}

/// check lists the sockets that the shim has missed, and prints the command that sets them.
#[test]
fn check_names_the_sockets_that_the_shim_missed() {
    let program = raw(&["-O2", "-DBOTH"]);
    let (_, text, _) = outcome(ka().arg("check").arg(&program));
    let own = format!("{} also makes system calls for sockets itself", program.display());
    assert!(text.contains(&own) && text.contains("\npreload  yes  "), "{text}");

    let running =
        WaitingProgram::start(ka().args(["run", "--via", "preload", "--"]).arg(&program).arg("stay"));
    let missed: Vec<_> = running.sockets().into_iter().filter(|options| !options.on).collect();
    assert_eq!((missed.len(), running.sockets().len()), (1, 2), "{missed:?}");
    let pid = running.pid().to_string();
    let report = json_of(ka().args(["check", "--json", &pid]));
    assert_eq!(report["command"], format!("ka attach {pid}"), "{report}");
    let facts = report["facts"].as_array().unwrap();
    assert_eq!(facts[2], "2 TCP sockets, 1 of them without keepalive", "{report}");
    let line = format!("without keepalive: fd {}, 0.0.0.0:", missed[0].fd);
    assert!(facts[3].as_str().unwrap().starts_with(&line), "{report}");
    assert_eq!(outcome(ka().args(["check", &pid])).0, 1);

    assert_eq!(outcome(ka().args(["attach", &pid])).0, 0);
    assert!(running.sockets().iter().all(|options| options.on));
    let (status, text, _) = outcome(ka().args(["check", &pid]));
    assert!(status == 0 && text.contains("none: a policy of ka applies already"), "{text}");
    assert_eq!(running.end(), 0);

    // The settings may be the reason why the shim has missed a socket.
    for (name, value, expected) in [
        ("KA_RULES", "lport=1-65535 skip", "; a rule of KA_RULES leaves it alone\n"),
        ("KA_SKIP", "raw-*", "\n  reason: KA_SKIP=raw-* leaves this program alone\n"),
        ("KA_POLICY", "off", "\n  reason: KA_POLICY=off\n"),
        (
            "KA_MODE",
            "default",
            "\n  possible reason: the program has turned keepalive off, which mode default allows",
        ),
    ] {
        let mut command = preloaded(&program);
        let running = WaitingProgram::start(command.arg("stay").env(name, value));
        let (status, text, _) = outcome(ka().args(["check", &running.pid().to_string()]));
        assert!(status == 1 && text.contains(expected), "{name}={value}: {text}");
        let is_on = name != "KA_SKIP" && name != "KA_POLICY";
        let in_force = if is_on {
            "in force: the policy of libka_preload.so: 60,10,6 (mode "
        } else {
            "in force: none: libka_preload.so leaves the process alone (KA_POLICY=off or KA_SKIP)"
        };
        assert!(text.contains(in_force), "{text}");
        assert_eq!(text.contains("with 1 rule (KA_RULES)"), name == "KA_RULES", "{text}");
        drop(running);
    }
    let mut command = preloaded(&program);
    let running = WaitingProgram::start(command.arg("stay").env("KA_POLICY", "280,30,5"));
    let (_, text, _) = outcome(ka().args(["check", &running.pid().to_string()]));
    assert!(text.contains(&format!("\ncommand  ka attach -p 280,30,5 {}\n", running.pid())), "{text}");
}

/// check reports programs that it cannot start or read, and PIDs without a process.
#[test]
fn check_reports_programs_and_pids_without_sockets() {
    let folder = PublicFolder::new("check");
    let broken = folder.join("broken");
    fs::write(&broken, b"\x7fELF, but no more").unwrap();
    fs::set_permissions(&broken, fs::Permissions::from_mode(0o755)).unwrap();
    let (status, out, _) = outcome(ka().arg("check").arg(&broken));
    assert!(
        status == 1 && out.contains("\n  a broken ELF file\n") && out.contains("the kernel cannot start it"),
        "{out}"
    );
    for number in ["0", "99999999999"] {
        let (status, out, err) = outcome(ka().args(["check", number]));
        assert!(status == 2 && out.is_empty() && err.contains(": must be a PID, such as 1234"), "{err}");
    }
    let mut ended = Command::new("true").spawn().unwrap();
    let pid = ended.id().try_into().unwrap();
    eventually("the process has ended", || state(pid) == Some('Z'));
    let (status, out, _) = outcome(ka().args(["check", &ended.id().to_string()]));
    assert!(
        status == 1 && out.contains("it has ended, and has no sockets") && out.contains("none: it has ended"),
        "{out}"
    );
    let (status, _, err) = outcome(ka().args(["attach", &ended.id().to_string()]));
    assert!(status == 1 && err.contains("it has ended (a zombie), and has no sockets"), "{err}");
    ended.wait().unwrap();
    // The ID of a thread is not a PID.
    let (sender, receiver) = std::sync::mpsc::channel();
    let (end, ends) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        // SAFETY: gettid(2) has no arguments and cannot fail.
        sender.send(unsafe { libc::gettid() }).unwrap();
        let _ = ends.recv();
    });
    let task = receiver.recv().unwrap().to_string();
    for command in ["attach", "check", "ls"] {
        let (status, out, err) = outcome(ka().args([command, &task]));
        let why = format!("it is a thread of process {}: use that PID", std::process::id());
        assert!(status != 0 && err.contains(&why), "{command}: {out}{err}");
    }
    drop(end);
    thread.join().unwrap();

    if !is_root() {
        skip("only root can become another user");
        return;
    }
    let unreadable = folder.join("unreadable");
    for program in ["ka", "unreadable"] {
        copy_program(release().join("ka"), folder.join(program));
    }
    fs::set_permissions(&unreadable, fs::Permissions::from_mode(0o711)).unwrap();
    let (_, out, _) = outcome(&mut as_nobody(Command::new(folder.join("ka")).arg("check").arg(&unreadable)));
    assert!(out.contains("you may not read it") && out.contains("& sudo ka attach --follow $!"), "{out}");
    assert!(
        out.contains(
            "attach   no      you may not read its file: once it runs, ka attach needs CAP_SYS_PTRACE"
        ),
        "{out}"
    );
    // ka cannot see the libraries of another user's process, so it prints `unknown` instead of `no`.
    let own = std::process::id().to_string();
    let (_, out, _) = outcome(&mut as_nobody(Command::new(folder.join("ka")).args(["check", &own])));
    assert!(out.contains("preload  unknown ka may not read which libraries are loaded"), "{out}");
    let report = json_of(&mut as_nobody(Command::new(folder.join("ka")).args(["check", "--json", &own])));
    assert!(way(&report, "preload")["reaches"].is_null(), "{report}");
}

/// If /etc/ld.so.preload lists the shim, setuid programs have the policy too, and check suggests no command.
#[test]
fn check_reports_a_shim_in_ld_so_preload() {
    if !is_root() {
        skip("only root has an /etc of its own");
        return;
    }
    let (ka, shim) = (release().join("ka"), shim());
    let script = format!(
        "cp /usr/bin/true /run/setuid && chown 65534 /run/setuid && chmod 4755 /run/setuid\n\
         echo KA_POLICY=280,30,5 >/etc/ka.conf; echo {} >/etc/ld.so.preload\n{ka} check; {ka} check /run/setuid; {ka} check {}",
        shim.display(),
        static_holder().display(),
        ka = ka.display(),
    );
    let out =
        String::from_utf8(with_own_etc(&format!("mount -t tmpfs none /run\n{script}\ntrue")).stdout).unwrap();
    let listed = format!("/etc/ld.so.preload lists {}", shim.display());
    assert!(
        out.contains(&format!(
            "\n  {listed}: programs that glibc's loader starts get 280,30,5 (mode force)\n"
        )),
        "{out}"
    );
    assert!(
        out.contains(&format!(
            "\npreload  yes     {listed}: it gets the policy of /etc/ka.conf, also without ka run\n"
        )),
        "{out}"
    );
    assert!(out.contains("\ncommand  none: /etc/ld.so.preload gives it the policy\n"), "{out}");
    // A static program does not get the policy.
    let (_, last) = out.rsplit_once(static_holder().to_str().unwrap()).unwrap();
    assert!(!last.contains("none: /etc/ld.so.preload"), "{last}");
}

/// The shim replaces the functions of one C library only.
#[test]
fn check_names_a_second_c_library() {
    const SOURCE: &str = "#define _GNU_SOURCE\n#include <dlfcn.h>\n#include <stdio.h>\n\
        int main(int argc, char **argv) {\n\
        \x20   if (argc > 1 && !dlmopen(LM_ID_NEWLM, argv[1], RTLD_NOW)) return 1;\n\
        \x20   puts(\"stay\"); fflush(stdout); while (getchar() != EOF); return 0;\n}\n";
    let source = scratch("twice").with_extension("c");
    fs::write(&source, SOURCE).unwrap();
    let program = compile(&mut cc(), &source, Linkage::Nothing);
    let check = |arguments: &[&str]| {
        let running = WaitingProgram::start(ka().arg("run").arg(&program).args(arguments));
        let (_, text, _) = outcome(ka().args(["check", &running.pid().to_string()]));
        assert_eq!(running.end(), 0);
        text
    };
    let two = "\n  2 copies of the C library are loaded";
    let (one, twice) = (check(&[]), check(&["libc.so.6"]));
    assert!(!one.contains("copies of the C library"), "{one}");
    assert!(twice.contains(two), "{twice}");
}

/// check does not claim that preload reaches programs that a wrapper starts without the shim.
#[test]
fn check_recognizes_wrappers() {
    let folder = scratch("wrappers");
    fs::create_dir(&folder).unwrap();
    for (name, preloaded, fact) in [
        ("sudo", false, "sudo starts its program without LD_PRELOAD"),
        ("mptcpize", false, "mptcpize replaces LD_PRELOAD with its own library"),
        ("bwrap", false, "bwrap starts its program in another root directory"),
        ("env", true, "with -i, -u LD_PRELOAD or LD_PRELOAD=, it starts its program without LD_PRELOAD"),
        ("su", true, "with -, -l or --login, it starts its program without LD_PRELOAD"),
        ("other", true, ""),
    ] {
        let program = folder.join(name);
        copy_program("/bin/true", &program);
        let report = json_of(ka().args(["check", "--json"]).arg(&program));
        assert_eq!(way(&report, "preload")["reaches"], preloaded, "{report}");
        assert!(report.to_string().contains(fact), "{report}");
    }
}

#[test]
fn plan_and_library_compute_the_same_numbers() {
    for (args, numbers) in [
        (&["--path", "350s"][..], [280, 30, 5, 430_000, 484_664]),
        (&["--path", "350"], [280, 30, 5, 430_000, 484_664]),
        (&["--preset", "aws-nlb"], [280, 30, 5, 430_000, 484_664]),
        (&["--detect", "30s"], [14, 4, 3, 26_000, 29_342]),
        (&["--detect", "30000ms"], [14, 4, 3, 26_000, 29_342]),
        (&["--policy", "60,10,5"], [60, 10, 5, 110_000, 124_029]),
        (&["--policy", "60,300,5"], [60, 300, 5, 1_560_000, 2_028_632]),
        (&["--policy", "idle=100"], [100, 10, 6, 160_000, 180_388]),
        (&["--policy", "1m:10s:5"], [60, 10, 5, 110_000, 124_029]),
        (&["--policy", "idle=100s, intvl=10s"], [100, 10, 6, 160_000, 180_388]),
    ] {
        let plan = json_of(ka().args(["plan", "--json"]).args(args));
        let options =
            ["idle", "intvl", "cnt", "typical_ms", "worst_ms"].map(|key| plan[key].as_u64().unwrap());
        assert_eq!(options, numbers, "{args:?}");
        let [idle, intvl, all] = ["idle", "intvl", "probes_per_hour"].map(|key| plan[key].as_f64().unwrap());
        assert!((all - 3600.0 / idle.max(intvl)).abs() < 1e-9, "{plan}");
    }
    let plan = json_of(ka().args(["plan", "--json", "--path", "350s", "--connections", "1000"]));
    assert_eq!(
        plan["all_bytes_per_day"].as_f64(),
        plan["bytes_per_day"].as_f64().map(|bytes| bytes * 1000.0)
    );
    let plan = json_of(ka().args(["plan", "--json", "-p", "idle=60,intvl=10,cnt=6,user_timeout=auto"]));
    assert_eq!(plan["user_timeout_ms"], 120_000);
    let (_, short, _) = outcome(ka().args(["plan", "-p", "idle=60,intvl=10,cnt=6,user_timeout=5000"]));
    let dead = "dead after 1 unanswered (the user timeout overrides cnt, which is 6)\n";
    assert!(short.contains(dead) && short.contains(", 1 probe, dead"), "{short}");
    for (args, message) in [
        (
            &["--detect", "1s"][..],
            "ka: plan: --detect: no policy can do it: the shortest time that works is 2274 ms\n",
        ),
        (&["--path", "2s"], "ka: plan: --path: no policy can do it: the shortest time that works is 3 s\n"),
        (&["--preset", "x"], "ka: plan: --preset x: no such preset; all presets: ka plan --list\n"),
        (&["--policy", "off"], "ka: plan: --policy off: the policy must turn keepalive on\n"),
        (
            &["--path", "1500ms"],
            "error: invalid value '1500ms' for '--path <S>': must be whole seconds, as 1s\n",
        ),
        (
            &["--path", "0"],
            "error: invalid value '0' for '--path <S>': must be 1..4294967295 s (at most 49710 d 6 h 28 min 15 s)\n",
        ),
        (&["--path", "-5"], "error: invalid value '-5' for '--path <S>': must be a time, as 60, 60s or 5m\n"),
        (&[], "error: the following required arguments were not provided"),
        (&["--path", "5s", "--detect", "5s"], "error: the argument '--path <S>' cannot be used with"),
    ] {
        let (status, out, err) = outcome(ka().arg("plan").args(args));
        assert_eq!((status, out.as_str()), (2, ""), "{args:?}");
        assert!(err.starts_with(message), "{args:?}: {err}");
    }
    let presets = json_of(ka().args(["plan", "--list", "--json"]));
    let presets = presets.as_array().unwrap();
    assert!(presets.iter().all(|preset| preset["url"].as_str().unwrap().starts_with("https://")));
    assert!(presets.contains(&json!({
        "name": "aws-nlb", "path_idle_s": 350, "idle": 280, "intvl": 30, "cnt": 5,
        "source": "AWS: Update the TCP idle timeout for your Network Load Balancer listener",
        "url": "https://docs.aws.amazon.com/elasticloadbalancing/latest/network/update-idle-timeout.html",
    })));
    let (_, text, _) = outcome(ka().args(["plan", "--list"]));
    assert!(presets.iter().all(|preset| text.contains(preset["url"].as_str().unwrap())));
}

/// Returns the lines below a heading of `ka plan`.
fn pasted(plan: &str, heading: &str) -> String {
    let lines = plan.lines().skip_while(|line| !line.starts_with(heading)).skip(1);
    let lines: Vec<_> = lines.take_while(|line| line.starts_with("    ")).map(str::trim).collect();
    assert!(!lines.is_empty(), "no {heading} in {plan}");
    lines.join("\n")
}

fn plan_text() -> String {
    let policy = "idle=280,intvl=30,cnt=5,user_timeout=430000";
    let (status, plan, _) = outcome(ka().env("LC_ALL", "C").args(["plan", "-p", policy]));
    assert_eq!(status, 0);
    plan
}

#[test]
fn a_plan_with_one_probe_warns_of_a_lost_packet() {
    let warns = |args: &[&str]| {
        let (status, out, err) = outcome(ka().arg("plan").args(args));
        assert_eq!((status, err.as_str()), (0, ""));
        out.contains("With one probe, one lost packet ends a connection whose peer is alive.")
    };
    for args in
        [&["--detect", "3s"][..], &["-p", "60,10,1"], &["-p", "idle=60,intvl=10,cnt=6,user_timeout=1000"]]
    {
        assert!(warns(args), "{args:?}");
    }
    for args in [&["--detect", "4s"][..], &["-p", "60,10,2"], &["-p", "60,10,6"]] {
        assert!(!warns(args), "{args:?}");
    }
    // The values that the warning suggests have three probes.
    let plan = json_of(ka().args(["plan", "--json", "--detect", "5s"]));
    assert_eq!(plan["cnt"], 3, "{plan}");
}

/// Runs with its own tcp_retries2 and tcp_rto_max_ms, from which the times are computed.
#[test]
fn a_plan_and_the_defaults_describe_unacknowledged_data() {
    if !in_own_network_namespace("a_plan_and_the_defaults_describe_unacknowledged_data") {
        return;
    }
    let system = has_rto_max().then_some(100_000);
    if let Some(system) = system {
        sysctl("tcp_rto_max_ms", &system.to_string());
    }
    sysctl("tcp_retries2", "4");
    let keys = ["rto_max_ms", "data_typical_ms", "data_worst_ms", "tcp_retries2", "auto_rto_max"];
    let plan = |policy: &str| {
        let plan = json_of(ka().args(["plan", "--json", "-p", policy]));
        Value::from(keys.map(|key| plan[key].clone()).to_vec())
    };
    // 200 + 400 + 800 + 1600 + 3200 ms.
    let longest = system.unwrap_or(120_000);
    let auto = |rto_max: i32, typical: i32| json!({ "rto_max_ms": rto_max, "data_typical_ms": typical, "data_worst_ms": typical + rto_max });
    assert_eq!(plan("60,10,6"), json!([null, 6200, 6200 + longest, 4, auto(120_000, 6200)]));
    assert_eq!(plan("1,1,4"), json!([null, 6200, 6200 + longest, 4, auto(2000, 5000)]));
    assert_eq!(plan("idle=60,intvl=10,cnt=6,rto_max=1s"), json!([1000, 3400, 4400, 4, null]));
    assert_eq!(plan("idle=1,intvl=1,cnt=2,rto_max=auto"), json!([1000, 3400, 4400, 4, null]));
    // -r adds rto_max to each kind of plan.
    for (flags, rto_max) in [
        (["--detect", "5s", "-r", "1500"], 1500),
        (["--path", "350s", "-r", "2s"], 2000),
        (["--preset", "aws-nlb", "--rto-max", "auto"], 120_000),
        (["-p", "idle=60,rto_max=3s", "-r", "4000"], 4000),
    ] {
        assert_eq!(json_of(ka().args(["plan", "--json"]).args(flags))["rto_max_ms"], rto_max, "{flags:?}");
    }
    let (status, _, err) = outcome(ka().args(["plan", "--path", "350s", "-r", "999"]));
    assert_eq!(status, 2);
    assert!(err.contains("rto_max must be 1000..120000 ms"), "{err}");
    assert_eq!(
        plan("idle=60,intvl=10,cnt=6,user_timeout=auto"),
        json!([null, 120_000, 120_000 + longest, 4, null])
    );
    let policy = "idle=60,intvl=10,cnt=6,rto_max=2000";
    let (_, text, _) = outcome(ka().args(["plan", "-p", policy]));
    assert!(text.contains("at most 2000 ms between two retransmissions of unacknowledged data\n"), "{text}");
    assert!(pasted(&text, "a program:").ends_with("-d 60 -i 10 -c 6 -r 2000 -- PROGRAM"), "{text}");
    assert!(pasted(&text, "the shim without ka run:").contains(&format!("KA_POLICY={policy} ")), "{text}");
    assert!(pasted(&text, "C, with libka:").contains("ka_set_rto_max(fd, 2000);"), "{text}");
    let (_, text, _) = outcome(ka().args(["plan", "-p", "60,10,6"]));
    assert!(
        !text.contains("ka_set_rto_max") && text.contains("With -r auto, an rto_max of 120000 ms here, "),
        "{text}"
    );

    let defaults = json_of(ka().args(["defaults", "--json"]));
    let keys = ["tcp_retries2", "tcp_rto_max_ms", "data_typical_ms"].map(|key| defaults[key].clone());
    assert_eq!(Value::from(keys.to_vec()), json!([4, system, 6200]), "{defaults}");
    let (_, text, _) = outcome(ka().arg("defaults"));
    assert!(
        text.contains("(tcp_retries2 = 4") && text.contains("tcp_rto_max_ms = 100000") == system.is_some(),
        "{text}"
    );
    let (_, text, _) = outcome(ka().arg("check"));
    let line = text.lines().find(|line| line.contains("rto_max (TCP_RTO_MAX_MS): ")).unwrap();
    assert_eq!(line.ends_with(": available"), system.is_some(), "{text}");
}

#[test]
fn a_plan_warns_of_a_user_timeout_shorter_than_idle() {
    let short = |timeout: &str| {
        let policy = format!("idle=60,intvl=10,cnt=6,user_timeout={timeout}");
        let (status, text, err) = outcome(ka().args(["plan", "-p", &policy]));
        assert_eq!((status, err.as_str()), (0, ""));
        let plan = json_of(ka().args(["plan", "--json", "-p", &policy]));
        let warnings = plan["warnings"].as_array().unwrap().clone();
        assert!(warnings.iter().all(|warning| text.contains(warning.as_str().unwrap())), "{text}");
        let first = warnings.first().map(|warning| warning.as_str().unwrap().to_owned());
        (first.filter(|first| first.contains("shorter than the idle time")), plan)
    };
    for (timeout, name) in [("5s", "5 s"), ("30ms", "30 ms"), ("59999", "59999 ms")] {
        let (warning, plan) = short(timeout);
        let begin = format!(
            "The user timeout, {name}, is shorter than the idle time, 60 s. The first unanswered probe ends an idle \
             connection. A connection with unacknowledged data ends after {name}, "
        );
        let warning = warning.unwrap();
        assert!(warning.starts_with(&begin), "{warning}");
        assert!(
            warning.ends_with("Better: user_timeout=auto (here 120 s), or user_timeout=none."),
            "{warning}"
        );
        assert_eq!(plan["typical_ms"], 70_000, "one probe");
    }
    for timeout in ["60s", "auto", "none", "0", "120000"] {
        assert_eq!(short(timeout).0, None, "{timeout}");
    }
    let plan = json_of(ka().args(["plan", "--json", "-p", "60,10,6"]));
    assert_eq!(plan["warnings"], json!([]));
    // Other commands accept the policy that a plan prints, and apply the same policy.
    let (_, plan) = short("30ms");
    let policy = plan["policy"].as_str().unwrap();
    assert_eq!(policy, "idle=60,intvl=10,cnt=6,user_timeout=30ms");
    assert_eq!(json_of(ka().args(["plan", "--json", "-p", policy])), plan);
    let (_, text, _) = outcome(ka().args(["plan", "-p", policy]));
    assert!(pasted(&text, "a program:").ends_with("-d 60 -i 10 -c 6 -u 30ms -- PROGRAM"), "{text}");
    assert!(
        pasted(&text, "the shim without ka run:")
            .contains("KA_POLICY=idle=60,intvl=10,cnt=6,user_timeout=30ms "),
        "{text}"
    );
    assert!(pasted(&text, "C, with libka:").contains("ka_set_user_timeout(fd, 30);"), "{text}");
}

#[test]
fn presets_have_aliases_and_unknown_names_get_suggestions() {
    let plan = |name: &str| outcome(ka().args(["plan", "--json", "--preset", name]));
    for (alias, name) in [("docker-swarm", "linux-ipvs"), ("AWS_NLB", "aws-nlb"), ("cisco", "cisco-asa")] {
        assert_eq!(plan(alias), plan(name), "{alias}");
        assert_eq!(plan(alias).0, 0);
    }
    for (name, candidates) in [
        ("gcp", "did you mean gcp-nat, gcp-vpc?"),
        ("azure", "did you mean azure-firewall, azure-lb, azure-nat?"),
        ("aws", "did you mean aws-gwlb, aws-nat, aws-network-firewall, aws-nitro-v6, aws-nlb?"),
    ] {
        let message =
            format!("ka: plan: --preset {name}: no such preset; {candidates} All presets: ka plan --list\n");
        assert_eq!(plan(name), (2, String::new(), message));
    }
    let (_, list, _) = outcome(ka().args(["plan", "--list"]));
    assert!(list.contains("\n  docker-swarm: linux-ipvs\n"), "{list}");
}

#[test]
fn the_timeline_has_a_mark_for_each_probe() {
    let (_, plan, _) = outcome(ka().env("LC_ALL", "C").args(["plan", "--path", "350s"]));
    let lines: Vec<_> = plan.lines().skip(2).collect();
    assert_eq!(lines[0].trim().chars().filter(|letter| *letter == '+').count(), 5, "{plan}");
    assert!(lines[0].trim().starts_with("|--") && lines[0].ends_with('X') && lines[0].len() <= 80, "{plan}");
    for (at, label) in [('|', "0 "), ('+', "280 "), ('X', "430 s")] {
        let place = lines[0].find(at).unwrap();
        assert!(lines[1][place..].starts_with(label), "{plan}");
    }
    let (_, plan, _) = outcome(ka().env("LC_ALL", "C.UTF-8").args(["plan", "--path", "350s"]));
    assert_eq!(plan.matches('┼').count(), 5);
    // Tests the largest and the smallest number of probes.
    for policy in ["1,1,127", "32767,32767,127", "1,1,1", "32767,1,1"] {
        assert_eq!(outcome(ka().args(["plan", "-p", policy])).0, 0);
    }
}

#[test]
fn nginx_accepts_the_lines_of_plan() {
    let listen = pasted(&plan_text(), "nginx").replace("443 ssl", "127.0.0.1:8080");
    let conf = nginx(&listen);
    succeed(Command::new("nginx").args(["-t", "-c"]).arg(conf));
}

#[test]
fn postgresql_accepts_the_lines_of_plan() {
    let plan = plan_text();
    let server = pasted(&plan, "PostgreSQL, postgresql.conf");
    for line in server.lines() {
        let (name, value) = line.split_once(" = ").unwrap();
        let bin =
            fs::read_dir("/usr/lib/postgresql").unwrap().map(|entry| entry.unwrap().path()).max().unwrap();
        // postgres does not run as root, and prints no parameter without a data folder. So the test reads the
        // description of all parameters.
        let described = stdout(Command::new(bin.join("bin/postgres")).arg("--describe-config"));
        let found = described
            .lines()
            .find(|line| line.starts_with(&format!("{name}\t")))
            .unwrap_or_else(|| panic!("{name}"));
        let columns: Vec<_> = found.split('\t').collect();
        let value: i64 = value.parse().unwrap();
        let numbers: Vec<i64> = columns.iter().filter_map(|column| column.parse().ok()).collect();
        assert!(numbers.iter().any(|most| *most >= value), "{found}");
    }
    // libpq rejects an unknown option before it connects.
    let client = pasted(&plan, "PostgreSQL's clients (libpq)");
    let (_, _, err) = outcome(Command::new("psql").arg(format!("host=127.0.0.1 port=1 {client}")));
    assert!(err.contains("Connection refused"), "{err}");
}

#[test]
fn systemd_accepts_the_lines_of_plan() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        skip("no systemd here");
        return;
    }
    let folder = scratch("systemd");
    fs::create_dir(&folder).unwrap();
    let unit = folder.join("ka-test.socket");
    let socket = pasted(&plan_text(), "systemd.socket(5)");
    fs::write(&unit, format!("{socket}\nListenStream=127.0.0.1:7000\n")).unwrap();
    fs::write(folder.join("ka-test.service"), "[Service]\nExecStart=/bin/true\n").unwrap();
    let output = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&unit).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let ours: Vec<_> = said.lines().filter(|line| line.contains("ka-test")).collect();
    assert!(ours.is_empty(), "{ours:?}");
    // Checks that systemd-analyze reports an unknown setting.
    fs::write(&unit, format!("{socket}\nKeepAliveNoSuch=1\n")).unwrap();
    let output = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&unit).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("KeepAliveNoSuch"));
}

#[test]
fn c_code_of_plan_compiles_and_works() {
    let source = scratch("pasted").with_extension("c");
    let call = pasted(&plan_text(), "C, with libka");
    let text = format!(
        "#include <ka.h>\n#include <stdio.h>\n#include <sys/socket.h>\nint main(void)\n{{\n\
         int fd = socket(AF_INET, SOCK_STREAM, 0), idle, intvl, cnt, ms;\n{call}\n\
         ka_get_idle(fd, &idle); ka_get_intvl(fd, &intvl); ka_get_cnt(fd, &cnt); ka_get_user_timeout(fd, &ms);\n\
         printf(\"%d %d %d %d %d\\n\", ka_is_enabled(fd), idle, intvl, cnt, ms);\n}}\n"
    );
    fs::write(&source, text).unwrap();
    let program = compile(&mut cc(), &source, Linkage::Shared);
    assert_eq!(stdout(&mut Command::new(program)), "1 280 30 5 430000\n");
}

#[test]
fn defaults_reads_and_sets_the_sysctls() {
    if !in_own_network_namespace("defaults_reads_and_sets_the_sysctls") {
        return;
    }
    for (name, value) in [("time", "7200"), ("intvl", "75"), ("probes", "9")] {
        sysctl(&format!("tcp_keepalive_{name}"), value);
    }
    let now = || {
        ["time", "intvl", "probes"].map(|name| {
            let path = format!("/proc/sys/net/ipv4/tcp_keepalive_{name}");
            fs::read_to_string(path).unwrap().trim().parse::<i32>().unwrap()
        })
    };
    let (_, text, _) = outcome(ka().arg("defaults"));
    assert!(
        text.contains(
            "A dead peer is detected after 2 h 11 min 15 s: 2 h idle, then 9 probes, 1 min 15 s apart."
        ),
        "{text}"
    );
    assert!(text.contains("0 of 0 connections have keepalive on"), "{text}");
    let _holder = Holder::start(Command::new(holder()).arg("keepalive"));
    let found = json_of(ka().args(["defaults", "--json"]));
    assert_eq!((&found["connections"], &found["with_keepalive"]), (&2.into(), &1.into()), "{found}");
    let text = outcome(ka().arg("defaults")).1;
    assert!(text.contains("1 of 2 connections has keepalive on. ka ls lists them."), "{text}");
    sysctl("tcp_keepalive_probes", "1");
    let text = outcome(ka().arg("defaults")).1;
    assert!(text.contains("2 h idle, then 1 probe, 1 min 15 s apart."), "{text}");

    assert_eq!(outcome(ka().args(["defaults", "--set", "60,10,6"])).0, 0);
    assert_eq!(now(), [60, 10, 6]);
    assert_eq!(outcome(ka().args(["defaults", "--set", "idle=90"])).0, 0);
    assert_eq!(now(), [90, 10, 6]);
    // Tests --persist: sysctl(8) reads the file, and a path that cannot be written changes nothing.
    let folder = scratch("sysctl");
    fs::create_dir(&folder).unwrap();
    let file = folder.join("60-ka.conf");
    let persist = |path: &Path| format!("--persist={}", path.display());
    assert_eq!(outcome(ka().args(["defaults", "--set", "30,5,3", &persist(&file)])).0, 0);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o644);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "no other file is left there");
    assert_eq!(now(), [30, 5, 3]);
    sysctl("tcp_keepalive_time", "7200");
    succeed(Command::new("sysctl").arg("-p").arg(&file));
    assert_eq!(now(), [30, 5, 3]);
    let (status, _, err) =
        outcome(ka().args(["defaults", "--set", "9,9,9", &persist(Path::new("/no/such/folder/x.conf"))]));
    assert!(status == 2 && err.ends_with("/no/such/folder/x.conf: No such file or directory\n"), "{err}");
    assert_eq!(now(), [30, 5, 3]);
    // The file cannot be renamed to a folder. The sysctls are restored.
    let (status, _, err) = outcome(ka().args(["defaults", "--set", "9,9,9", &persist(&folder)]));
    assert!(status == 2 && err.contains("nothing was set"), "{err}");
    assert_eq!(now(), [30, 5, 3]);

    for (policy, why) in [
        ("off", "no sysctl turns keepalive on or off"),
        ("60,10,6,x", "numbers without names must be three"),
        ("idle=60,user_timeout=5ms", "there is no sysctl for the user timeout"),
        (
            "idle=60,rto_max=5s",
            "only idle, intvl and cnt; for rto_max use sysctl -w net.ipv4.tcp_rto_max_ms=MS",
        ),
        ("on", "name at least one of idle, intvl and cnt"),
        ("idle=40000", "idle must be 1..32767 s"),
    ] {
        let (status, _, err) = outcome(ka().args(["defaults", "--set", policy]));
        assert!(status == 2 && err.contains(why), "{policy}: {err}");
    }
    assert_eq!(outcome(ka().args(["defaults", "--persist"])).0, 2);
    sysctl("tcp_keepalive_time", "-1");
    assert!(outcome(ka().arg("defaults")).1.contains("Keepalive cannot work with these values"));

    if !is_root() {
        skip("only root can become another user");
        return;
    }
    let public = PublicFolder::new("defaults");
    copy_program(release().join("ka"), public.join("ka"));
    let (status, _, err) =
        outcome(&mut as_nobody(Command::new(public.join("ka")).args(["defaults", "--set", "9,9,9"])));
    assert!(status == 2 && err.contains("needs CAP_NET_ADMIN") && err.contains("(try sudo)"), "{err}");
    assert!(err.contains("nothing was set"), "{err}");
    assert_eq!(now(), [-1, 5, 3]);
}

/// The line names the shim beside ka. If there is none, it names the place where packages install it.
#[test]
fn the_loader_accepts_the_line_of_plan() {
    let program = "import socket; s = socket.socket(); print(s.getsockopt(1, 9), s.getsockopt(6, 4))";
    let line =
        |ka: &Path| pasted(&stdout(bare(ka).args(["plan", "-p", "280,30,5"])), "the shim without ka run");
    let run = |line: &str| {
        let script = line.replace("PROGRAM", "python3 -c \"$0\"");
        outcome(bare("sh").args(["-c", &script, program]))
    };
    let ours = line(&release().join("ka"));
    assert_eq!(run(&ours), (0, "1 280\n".to_owned(), String::new()), "{ours}");
    let installed = scratch("it's");
    for folder in ["bin", "lib/ka"] {
        fs::create_dir_all(installed.join(folder)).unwrap();
    }
    let own = installed.join("bin/ka");
    copy_program(release().join("ka"), &own);
    let elsewhere = line(&own);
    let private = option_env!("KA_LIBDIR").unwrap_or("/usr/lib/ka");
    assert!(
        elsewhere.starts_with(&format!("LD_PRELOAD={private}/libka_preload.so KA_POLICY=")),
        "{elsewhere}"
    );
    copy_program(shim(), installed.join("lib/ka/libka_preload.so"));
    let installed = line(&own);
    assert_eq!(run(&installed), (0, "1 280\n".to_owned(), String::new()), "{installed}");
    assert!(!installed.contains(".."), "{installed}");
    let odd = scratch("with blank");
    fs::create_dir(&odd).unwrap();
    for file in ["ka", "libka_preload.so"] {
        copy_program(release().join(file), odd.join(file));
    }
    assert!(line(&odd.join("ka")).starts_with("# LD_PRELOAD cannot contain the path"));
}

/// In a sandbox that denies netlink sockets, ka cannot list sockets, but still reads and sets the sysctls.
#[test]
fn defaults_works_without_a_list_of_sockets() {
    if !in_own_network_namespace("defaults_works_without_a_list_of_sockets") {
        return;
    }
    for (name, value) in [("time", "7200"), ("intvl", "75"), ("probes", "9")] {
        sysctl(&format!("tcp_keepalive_{name}"), value);
    }
    let defaults = |args: &[&str]| {
        let mut command = refusing(libc::SYS_socket, libc::EAFNOSUPPORT, Some((0, libc::AF_NETLINK)));
        outcome(command.arg(release().join("ka")).arg("defaults").args(args))
    };
    let why =
        "ka cannot count the connections with keepalive, because it cannot list the sockets: Address family";
    let (status, text, err) = defaults(&[]);
    assert_eq!((status, err.as_str()), (0, ""), "{text}");
    assert!(text.starts_with("net.ipv4.tcp_keepalive_time = 7200\n") && text.contains(why), "{text}");
    let (status, text, err) = defaults(&["--json"]);
    assert_eq!((status, err.as_str()), (0, ""), "{text}");
    let found: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        found,
        json!({
            "tcp_retries2": 15,
            "tcp_rto_max_ms": has_rto_max().then_some(120_000),
            "data_typical_ms": 924_600,
            "idle": 7200, "intvl": 75, "cnt": 9, "typical_ms": 7_875_000,
            "connections": null, "with_keepalive": null, "unknown": null,
        })
    );
    let (status, text, err) = defaults(&["--set", "60,10,6"]);
    assert_eq!((status, err.as_str()), (0, ""), "{text}");
    assert!(text.starts_with("net.ipv4.tcp_keepalive_time = 60\n") && text.contains(why), "{text}");
    let now = fs::read_to_string("/proc/sys/net/ipv4/tcp_keepalive_time").unwrap();
    assert_eq!(now, "60\n");
}

/// The pages describe exactly the keys that are printed. The suite cgroup.rs checks the keys of a cgroup's policy.
#[test]
fn the_manual_pages_describe_each_json_key() {
    let [mut keys] = described("ka-check.1");
    keys.retain(|key, _| !key.starts_with("cgroups[]."));
    let mut process = json_of(ka().args(["check", "--json", &std::process::id().to_string()]));
    if process["cgroups"].is_array() {
        process["cgroups"] = json!([]);
    }
    let machine = json_of(ka().args(["check", "--json"]));
    let program = json_of(ka().args(["check", "--json", "true"]));
    assert_described(&keys, &[process, machine, program]);

    let [plan, presets] = described("ka-plan.1");
    let short = "idle=60,intvl=70,cnt=1,user_timeout=5s";
    let plans = ["60,10,6", "idle=60,user_timeout=auto", "idle=60,user_timeout=none", short];
    assert_described(&plan, &plans.map(|policy| json_of(ka().args(["plan", "--json", "-p", policy]))));
    assert_described(&presets, &[json_of(ka().args(["plan", "--json", "--list"]))]);

    let [defaults] = described("ka-defaults.1");
    let mut blind = refusing(libc::SYS_socket, libc::EAFNOSUPPORT, Some((0, libc::AF_NETLINK)));
    let blind = json_of(blind.arg(release().join("ka")).args(["defaults", "--json"]));
    assert_eq!(blind["connections"], Value::Null);
    assert_described(&defaults, &[json_of(ka().args(["defaults", "--json"])), blind]);
}

#[test]
fn version_and_help_are_printed() {
    assert_eq!(stdout(ka().arg("--version")), format!("ka {}\n", env!("CARGO_PKG_VERSION")));
    for args in [
        &["--help"][..],
        &["run", "--help"],
        &["attach", "--help"],
        &["ls", "--help"],
        &["check", "--help"],
        &["plan", "--help"],
        &["defaults", "--help"],
        &["cgroup", "--help"],
        &["cgroup", "attach", "--help"],
        &["completions", "--help"],
    ] {
        let (status, out, _) = outcome(ka().args(args));
        assert!(status == 0 && out.contains("Examples:"), "{args:?}: {out}");
    }
    let (status, out, _) = outcome(&mut ka());
    assert!(status == 2 && out.is_empty());
    for args in [&[][..], &["run"], &["cgroup"], &["cgroup", "attach"]] {
        let help = stdout(ka().arg("help").args(args));
        assert_eq!(help, stdout(ka().args(args).arg("--help")), "{args:?}");
    }
    assert_eq!(stdout(ka().args(["cgroup", "help", "ls"])), stdout(ka().args(["cgroup", "ls", "--help"])));
    let (status, out, err) = outcome(ka().args(["help", "nothing"]));
    assert!(status == 2 && out.is_empty() && err.contains("unrecognized subcommand 'nothing'"), "{err}");
}

/// Only examples may be wider than the terminal, because a wrapped example cannot be copied.
#[test]
fn help_wraps_at_the_width_of_the_terminal() {
    for args in
        [&["help"][..], &["help", "run"], &["attach", "--help"], &["plan", "-h"], &["cgroup", "attach", "-h"]]
    {
        let help = |columns: &str| stdout(ka().args(args).env("COLUMNS", columns));
        let examples = |help: &str| {
            let (_, rest) = help.split_once("\nExamples:\n").unwrap();
            rest.split("\n\n").next().unwrap().to_owned()
        };
        let (narrow, wide) = (help("50"), help("200"));
        assert_eq!(examples(&narrow), examples(&wide), "{args:?}");
        let rest = narrow.replace(&examples(&narrow), "");
        let mut wrapped = rest.lines().filter(|line| !line.starts_with("Usage: "));
        assert!(wrapped.all(|line| line.chars().count() <= 50), "{args:?}: {rest}");
        assert!(wide.lines().any(|line| line.chars().count() > 100), "{args:?}: {wide}");
    }
}

#[test]
fn messages_about_wrong_numbers_describe_valid_ones() {
    for (args, right) in [
        (&["plan", "-p", "60,10,6", "--connections", "x"][..], "must be a number, 1 or more"),
        (&["plan", "-p", "60,10,6", "--connections", "0"], "must be a number, 1 or more"),
        (&["plan", "-p", "60,10,6", "--connections", "-1"], "must be a number, 1 or more"),
        (&["attach", "1", "--port", "http"], "must be a port number, 1..65535"),
        (&["attach", "1", "--port", "0"], "must be a port number, 1..65535"),
        (&["attach", "1", "--port", "65536"], "must be a port number, 1..65535"),
        (&["attach", "x"], "must be a PID, such as 1234"),
        (&["attach", "99999999999"], "must be a PID, such as 1234"),
        (&["ls", "--pid", "x"], "must be a PID, such as 1234"),
        (&["run", "-c", "x", "true"], "must be a number without a unit, as 6"),
        (&["run", "-d", "x", "true"], "must be a time, as 60, 60s or 5m"),
        (&["attach", "1", "--spread", "x"], "must be a time, as 60, 60s or 5m"),
        (&["attach", "1", "--follow", "--interval", "x"], "must be a time, as 60, 60s or 5m"),
        (&["plan", "--detect", "x"], "must be a time, as 60, 60s or 5m"),
        (&["plan", "--path", "-1"], "must be a time, as 60, 60s or 5m"),
    ] {
        let err = outcome(ka().args(args)).2;
        assert!(err.contains(&format!(": {right}")) && !err.contains("digit found"), "{args:?}: {err}");
    }
}

/// This holds for help and version too.
#[test]
fn output_that_cannot_be_written_is_an_error() {
    for args in
        [&["--help"][..], &["-V"], &["run", "--help"], &["cgroup", "attach", "-h"], &["completions", "bash"]]
    {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = ka().args(args).stdout(full).output().unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {err}");
        assert_eq!(err, "ka: standard output: No space left on device\n", "{args:?}");
    }
}
