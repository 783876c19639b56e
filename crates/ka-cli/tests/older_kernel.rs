//! Tests `ka` and the shim on a kernel that lacks `TCP_RTO_MAX_MS` (before Linux 6.15). The sysctls of such a kernel
//! are mounted over those of this one.

mod command;

use std::fs;

use command::bare;
use ka_test::artifact::{release, shim};
use ka_test::child::stderr;
use ka_test::kernel::lacks_bpf;
use ka_test::log::skip;
use ka_test::namespace::user_namespace;
use ka_test::path::scratch;

const MESSAGE: &str = "ka: rto_max: needs Linux 6.15 or later; ignored\n";

/// Runs a command of the shell in its own network namespace, with the sysctls of an older kernel. Returns its messages.
fn run(command: &str) -> String {
    let sysctls = scratch("ipv4");
    fs::create_dir(&sysctls).unwrap();
    for (name, value) in [
        ("tcp_keepalive_time", 7200),
        ("tcp_keepalive_intvl", 75),
        ("tcp_keepalive_probes", 9),
        ("tcp_retries2", 15),
    ] {
        fs::write(sysctls.join(name), format!("{value}\n")).unwrap();
    }
    let mut shell = bare("unshare");
    shell.args(user_namespace()).args(["--mount", "--net", "sh", "-c"]);
    shell.arg(format!("mount --bind \"$SYSCTLS\" /proc/sys/net/ipv4 || exit 9\n{command}"));
    let output =
        shell.env("SYSCTLS", sysctls).env("ka", release().join("ka")).env("shim", shim()).output().unwrap();
    assert_ne!(output.status.code(), Some(9), "{}", stderr(&output));
    stderr(&output)
}

#[test]
fn a_kernel_without_rto_max_is_reported_once() {
    for command in [
        "$ka run --via preload -r 2s -- true",
        "$ka run --via seccomp -r 2s -- true",
        "KA_RTO_MAX=auto $ka run --via seccomp -- true",
        "KA_RULES='lport=80 rto_max=2s' $ka run --via preload -- true",
        "LD_PRELOAD=$shim KA_RTO_MAX=2s /bin/true",
        "$ka attach -r 2s $$",
        "$ka attach -p 60,10,6 -r 2s $$",
        "$ka attach -p idle=60,rto_max=2s $$",
        "$ka cgroup attach -r 2s no-such-cgroup",
    ] {
        let messages = run(command);
        assert_eq!(messages.matches("rto_max").count(), 1, "{command}: {messages}");
        assert!(messages.contains(MESSAGE), "{command}: {messages}");
        let quiet = run(&format!("export KA_QUIET=1\n{command}"));
        assert!(!quiet.contains("rto_max"), "{command}: {quiet}");
        let without =
            command.replace("-r 2s", "").replace("KA_RTO_MAX", "KA_IDLE").replace("rto_max", "user_timeout");
        let without = run(&without);
        assert!(!without.contains("rto_max"), "{command}: {without}");
    }
}

#[test]
fn attach_via_bpf_counts_the_sockets_without_rto_max() {
    if let Some(why) = lacks_bpf() {
        return skip(&why);
    }
    let attach = |args: &str| {
        run(&format!(
            "python3 -c 'import os, socket, subprocess as sub, sys; listener = socket.create_server((\"\", 0)); \
             sub.run([os.environ[\"ka\"], *sys.argv[1:]], stdout=2)' attach --all --via bpf {args}"
        ))
    };
    let note = "1 of them without rto_max: it needs Linux 6.15";
    for (args, has_note) in [
        ("-p 60,10,6 -r 2s", true),
        ("-p 60,10,6 -r 2s --dry-run", true),
        ("-p 60,10,6", false),
        ("-p off,rto_max=2s", true),
    ] {
        let messages = attach(args);
        assert_eq!(messages.contains(note), has_note, "{args}: {messages}");
    }
    let json = attach("-p 60,10,6 -r 2s --json");
    assert!(json.contains("\"without_rto_max\": 1,"), "{json}");
}
