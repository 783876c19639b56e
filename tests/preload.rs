//! Tests the shim with programs in C, in every mode. The programs read a socket's settings by system calls that the
//! hooks do not see.

use std::ffi::OsString;
use std::fs;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use ka_test::artifact::{loaded_size, shim, unstripped};
use ka_test::child::{preloaded, stderr, stdout, succeed};
use ka_test::compiler::{Linkage, cc, compile};
use ka_test::kernel::sysctl;
use ka_test::log::skip;
use ka_test::namespace::{in_new_namespaces, in_own_network_namespace, is_root, with_own_etc};
use ka_test::path::{PublicFolder, copy_program, root, scratch};
use ka_test::socket::{fresh, has_rto_max, is_rounded_rto_max, set_option};

/// The beginning of a shell command that runs as an unprivileged user.
const NOBODY: &str = "setpriv --reuid 65534 --regid 65534 --clear-groups";

/// The functions that the shim exports.
const HOOKS: [&str; 15] = [
    "accept",
    "accept4",
    "connect",
    "dlopen",
    "dlsym",
    "listen",
    "prctl",
    "recvmmsg",
    "recvmsg",
    "sendmmsg",
    "sendmsg",
    "sendto",
    "setsockopt",
    "socket",
    "syscall",
];

fn source(name: &str) -> PathBuf {
    root().join("tests/c/preload").join(name).with_extension("c")
}

/// Compiles a program of tests/c/preload once.
macro_rules! program {
    ($name:literal) => {{
        static MADE: OnceLock<PathBuf> = OnceLock::new();
        MADE.get_or_init(|| compile(&mut cc(), &source($name), Linkage::Nothing)).clone()
    }};
}

fn library(name: &str) -> PathBuf {
    library_with(name, &[])
}

fn library_with(name: &str, flags: &[&str]) -> PathBuf {
    compile(cc().args(["-shared", "-fPIC"]).args(flags), &source(name), Linkage::Nothing)
}

/// Returns the lines `what: values` that a program has printed.
fn lines(printed: &str) -> impl Iterator<Item = (&str, &str)> {
    printed.lines().filter_map(|line| line.split_once(": "))
}

// The library file.

#[test]
fn the_shim_exports_only_its_hooks() {
    let table = stdout(Command::new("nm").args(["-D", "--defined-only"]).arg(shim()));
    let mut names: Vec<_> = table.lines().filter_map(|line| line.split_whitespace().last()).collect();
    names.sort_unstable();
    assert_eq!(names, HOOKS);
}

#[test]
fn the_shim_needs_only_an_old_libc() {
    let dynamic = stdout(Command::new("readelf").arg("-dW").arg(shim()));
    let needed: Vec<_> = dynamic.lines().filter(|line| line.contains("(NEEDED)")).collect();
    assert!(needed.len() == 1 && needed[0].ends_with("[libc.so.6]"), "{needed:?}");
    assert!(!dynamic.contains("[libka.so"), "the shim has the SONAME of libka: {dynamic}");
    let symbols = stdout(Command::new("nm").args(["-D", "--undefined-only"]).arg(shim()));
    let versions: Vec<u32> = symbols
        .lines()
        .filter_map(|line| line.split_once("@GLIBC_2.")?.1.split('.').next()?.parse().ok())
        .collect();
    assert!(!versions.is_empty() && versions.iter().all(|minor| *minor <= 17), "{symbols}");
    for name in ["malloc", "calloc", "realloc", "pthread_mutex_lock", "getenv", "dlsym"] {
        assert!(!symbols.contains(name), "the shim calls {name}");
    }
}

#[test]
fn the_shim_stays_below_its_size_limit() {
    // Each instruction of aarch64 has four bytes, so the same code is larger there. 2 KiB of it are for rto_max: its
    // steps and texts in ka-core and ka-policy, the arithmetic of its automatic value, and reading tcp_retries2.
    let most = if cfg!(target_arch = "aarch64") { 40 } else { 38 };
    let size = loaded_size(&shim());
    assert!((1..=most * 1024).contains(&size), "{size} bytes, more than {most} KiB");
}

#[test]
fn the_library_cannot_panic() {
    let symbols = stdout(Command::new("nm").arg("--demangle").arg(unstripped().join("libka_preload.so")));
    assert!(symbols.contains("ka_preload::"), "the symbols are stripped, so the test would prove nothing");
    let panics: Vec<_> =
        symbols.lines().filter(|line| line.contains("panic") || line.contains("_fail")).collect();
    assert!(panics.iter().all(|line| line.contains("ka_preload::panic")), "{panics:?}");
}

// Covered sockets.

#[test]
fn tcp_sockets_have_the_policy_and_others_are_unchanged() {
    let printed = stdout(&mut preloaded(program!("sockets")));
    assert!(printed.lines().count() > 20, "{printed}");
    for (what, values) in lines(&printed) {
        let expected = match what {
            _ if what.starts_with("not ") => values.starts_with("0 -").then_some(values),
            _ if what.contains("MPTCP") => Some("1 60 10 6 -95"),
            _ => Some("1 60 10 6 0"),
        };
        assert_eq!(Some(values), expected, "{what}");
    }
}

#[test]
fn sockets_received_from_the_same_user_have_the_policy() {
    let sockets = program!("sockets");
    let received = |preload: &str| stdout(preloaded(&sockets).arg("received").env("LD_PRELOAD", preload));
    let shim = shim();
    let printed = received(shim.to_str().unwrap());
    assert_eq!(lines(&printed).count(), 8, "{printed}");
    assert!(lines(&printed).all(|(_, values)| values == "1 60 10 6 0"), "{printed}");

    assert_eq!(stdout(preloaded(musl_sockets()).arg("received")), printed);
    let chain = library("chain");
    for order in [[&chain, &shim], [&shim, &chain]] {
        assert_eq!(received(&order.map(|path| path.to_str().unwrap()).join(":")), printed);
    }
    let off = stdout(preloaded(&sockets).arg("received").env("KA_POLICY", "off"));
    assert!(lines(&off).count() == 8 && lines(&off).all(|(_, values)| values.starts_with('0')), "{off}");
}

/// Builds the program `sockets` with musl.
fn musl_sockets() -> PathBuf {
    compile(
        Command::new("musl-gcc").arg("-I").arg(root().join("tests/c/preload")),
        &source("sockets"),
        Linkage::Nothing,
    )
}

#[test]
fn the_shim_works_in_musl_programs() {
    assert_eq!(stdout(&mut preloaded(musl_sockets())), stdout(&mut preloaded(program!("sockets"))));
}

#[test]
fn off_leaves_sockets_unchanged() {
    let printed = stdout(preloaded(program!("sockets")).env("KA_POLICY", "off"));
    assert_eq!(printed, stdout(&mut Command::new(program!("sockets"))));
    assert!(lines(&printed).all(|(_, values)| values.starts_with('0')), "{printed}");
}

#[test]
fn variables_set_every_part_of_the_policy() {
    if !in_own_network_namespace("variables_set_every_part_of_the_policy") {
        return;
    }
    let moments = program!("moments");
    let one = |variables: &[(&str, &str)]| {
        let mut command = preloaded(&moments);
        let output = succeed(command.arg("one").envs(variables.iter().copied()));
        assert_eq!(stderr(&output), "", "{variables:?}");
        String::from_utf8(output.stdout).unwrap().lines().next().unwrap().to_owned()
    };
    for (variables, values) in [
        (&[][..], "1 60 10 6 0"),
        (&[("KA_POLICY", "30,5,3")], "1 30 5 3 0"),
        (&[("KA_POLICY", "idle=30")], "1 30 10 6 0"),
        (&[("KA_POLICY", "5m, 30s, 5")], "1 300 30 5 0"),
        (&[("KA_POLICY", "1h:30:5")], "1 3600 30 5 0"),
        (&[("KA_POLICY", "idle=1m, user_timeout=30s")], "1 60 10 6 30000"),
        (&[("KA_POLICY", "user_timeout=none")], "1 60 10 6 0"),
        (&[("KA_IDLE", "5m"), ("KA_INTVL", " 2000ms "), ("KA_USER_TIMEOUT", "1d")], "1 300 2 6 86400000"),
        (&[("KA_POLICY", "user_timeout=5000"), ("KA_USER_TIMEOUT", "none")], "1 60 10 6 0"),
        (&[("KA_POLICY", "30,5,3"), ("KA_CNT", "7")], "1 30 5 7 0"),
        (&[("KA_IDLE", "1"), ("KA_INTVL", "2"), ("KA_CNT", "3"), ("KA_USER_TIMEOUT", "4ms")], "1 1 2 3 4"),
        (&[("KA_USER_TIMEOUT", "auto")], "1 60 10 6 120000"),
        (&[("KA_POLICY", "30,5,3"), ("KA_USER_TIMEOUT", "auto")], "1 30 5 3 45000"),
        (&[("KA_POLICY", "idle=30,user_timeout=auto"), ("KA_CNT", "1")], "1 30 10 1 40000"),
        (&[("KA_POLICY", "30,5,3"), ("KA_USER_TIMEOUT", "keep")], "1 30 5 3 0"),
        (&[("KA_POLICY", "user_timeout=9ms"), ("KA_USER_TIMEOUT", "keep")], "1 60 10 6 0"),
        (&[("KA_POLICY", "off"), ("KA_IDLE", "30")], "0 7200 75 9 0"),
        (&[("KA_SKIP", "moments*")], "0 7200 75 9 0"),
        (&[("KA_SKIP", "chrome, *ments-*,sshd")], "0 7200 75 9 0"),
        (&[("KA_SKIP", "moment")], "1 60 10 6 0"),
    ] {
        assert_eq!(one(variables), values, "{variables:?}");
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn bad_values_are_named_once_and_ignored() {
    if !in_own_network_namespace("bad_values_are_named_once_and_ignored") {
        return;
    }
    let moments = program!("moments");
    for (variables, values, complaint) in [
        (
            &[("KA_IDLE", "abc")][..],
            "1 60 10 6 0",
            "ka: KA_IDLE=\"abc\": must be a time, as 60, 60s or 5m; ignored\n",
        ),
        (&[("KA_IDLE", "")], "1 60 10 6 0", "ka: KA_IDLE: must be a time, as 60, 60s or 5m; ignored\n"),
        (
            &[("KA_POLICY", "30,5,3"), ("KA_IDLE", "0")],
            "1 30 5 3 0",
            "ka: KA_IDLE=\"0\": idle must be 1..32767 s; ignored\n",
        ),
        (&[("KA_CNT", "99999")], "1 60 10 6 0", "ka: KA_CNT=\"99999\": cnt must be 1..127 probes; ignored\n"),
        (
            &[("KA_POLICY", "30,5,3"), ("KA_USER_TIMEOUT", "30")],
            "1 30 5 3 0",
            "ka: KA_USER_TIMEOUT=\"30\": below 1000 it needs a unit, as 30ms or 30s; ignored\n",
        ),
        (
            &[("KA_POLICY", "idle=30,user_timeout=30")],
            "1 60 10 6 0",
            "ka: KA_POLICY=\"idle=30,user_timeout=30\": below 1000 it needs a unit, as 30ms or 30s; ignored\n",
        ),
        (
            &[("KA_INTVL", "1500ms")],
            "1 60 10 6 0",
            "ka: KA_INTVL=\"1500ms\": must be whole seconds; ignored\n",
        ),
        (
            &[("KA_CNT", "6s")],
            "1 60 10 6 0",
            "ka: KA_CNT=\"6s\": must be a number without a unit, as 6; ignored\n",
        ),
        (
            &[("KA_POLICY", "30,5,3"), ("KA_RTO_MAX", "999")],
            "1 30 5 3 0",
            "ka: KA_RTO_MAX=\"999\": rto_max must be 1000..120000 ms; ignored\n",
        ),
        (
            &[("KA_RTO_MAX", "none")],
            "1 60 10 6 0",
            "ka: KA_RTO_MAX=\"none\": must be a time, as 2s, or auto; ignored\n",
        ),
        (
            &[("KA_POLICY", "30,5")],
            "1 60 10 6 0",
            "ka: KA_POLICY=\"30,5\": numbers without names must be three: idle,intvl,cnt; ignored\n",
        ),
        (
            &[("KA_POLICY", "idle=30,cnt=0")],
            "1 60 10 6 0",
            "ka: KA_POLICY=\"idle=30,cnt=0\": cnt must be 1..127 probes; ignored\n",
        ),
        (
            &[("KA_POLICY", "keep")],
            "1 60 10 6 0",
            "ka: KA_POLICY=\"keep\": must turn keepalive on, or be off; ignored\n",
        ),
        (
            &[("KA_MODE", "hard")],
            "1 60 10 6 0",
            "ka: KA_MODE=\"hard\": must be force, floor or default; ignored\n",
        ),
        (
            &[("KA_LOG", "here")],
            "1 60 10 6 0",
            "ka: KA_LOG=\"here\": must be an absolute path of at most 1023 bytes; ignored\n",
        ),
        (
            &[("KA_LOG", "/no/such/folder/log")],
            "1 60 10 6 0",
            "ka: KA_LOG=\"/no/such/folder/log\": must be a file that this user can write; ignored\n",
        ),
        (
            &[("KA_LOG", "/tmp")],
            "1 60 10 6 0",
            "ka: KA_LOG=\"/tmp\": must be a file that this user can write; ignored\n",
        ),
        (
            &[("KA_IDLE", "a\u{1b}[2Jb\n")],
            "1 60 10 6 0",
            "ka: KA_IDLE=\"a?[2Jb?\": must be a time, as 60, 60s or 5m; ignored\n",
        ),
        (
            &[("KA_RULES", "rport=22; lport=1 idle=7")],
            "0 7200 75 9 0",
            "ka: KA_RULES=\"rport=22\": must end with skip or a policy, as 60,10,6; ignored\n",
        ),
        (
            &[("KA_RULES", "rport=x skip")],
            "1 60 10 6 0",
            "ka: KA_RULES=\"rport=x skip\": \"rport=x\": must be a port or a range, 1..65535, as 22 or 8000-8999; ignored\n",
        ),
    ] {
        let output = succeed(preloaded(&moments).arg("one").envs(variables.iter().copied()));
        assert_eq!(stderr(&output), complaint, "{variables:?}");
        assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{values}\nwell\n"), "{variables:?}");
        let quiet =
            succeed(preloaded(&moments).arg("one").env("KA_QUIET", "1").envs(variables.iter().copied()));
        assert_eq!(stderr(&quiet), "", "KA_QUIET");
    }
}

#[test]
fn rules_choose_by_peer_and_port() {
    if !in_own_network_namespace("rules_choose_by_peer_and_port") {
        return;
    }
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let peers = program!("peers");
    let run = |rules: &str| stdout(preloaded(&peers).arg(&port).env("KA_RULES", rules));
    let value = |printed: &str, what: &str| lines(printed).find(|line| line.0 == what).unwrap().1.to_owned();

    let printed = run(&format!("peer=127.0.0.2 skip; rport={port} idle=240; peer=127.0.0.0/8 30,5,3"));
    for (what, values) in [
        ("one, before", "0 7200 75 9 0"),
        ("one", "1 240 10 6 0"),
        ("one, turned off", "1 240 10 6 0"),
        ("two", "0 7200 75 9 0"),
        ("two, turned off", "0 7200 75 9 0"),
        ("mapped", "0 7200 75 9 0"),
        ("listener", "0 7200 75 9 0"),
        ("accepted", "1 30 5 3 0"),
    ] {
        assert_eq!(value(&printed, what), values, "{what} in:\n{printed}");
    }
    // If no rule matches, the base policy applies. Connections may be non-blocking.
    let printed = run("peer=127.0.0.1 idle=99; peer=10.0.0.0/8 skip");
    assert_eq!(value(&printed, "two"), "1 60 10 6 0");
    assert_eq!(value(&printed, "one"), "1 99 10 6 0");
    // With rules for local ports only, accepted sockets inherit the policy of the listener.
    let printed = run("lport=1024-65535 20,4,2");
    assert_eq!(value(&printed, "listener"), "1 20 4 2 0");
    assert_eq!(value(&printed, "accepted"), "1 20 4 2 0");
    assert_eq!(value(&printed, "one"), "1 60 10 6 0");
    // There may be many rules.
    let many = (1..=40).map(|n| format!("peer=10.0.0.{n} skip")).collect::<Vec<_>>().join(";");
    let printed = run(&format!("{many}; peer=127.0.0.1 idle=77"));
    assert_eq!(value(&printed, "one"), "1 77 10 6 0");
}

/// A program that prints `TCP_RTO_MAX_MS` of a new socket, and of both ends of a connection.
const RTO_MAXIMA: &str = "import socket as s
k, l = s.socket(), s.socket()
l.bind(('127.0.0.1', 0)); l.listen()
k.connect(l.getsockname())
print(*(x.getsockopt(6, 44) for x in (s.socket(), k, l.accept()[0])))";

#[test]
fn rto_max_reaches_sockets_of_the_program() {
    if !in_own_network_namespace("rto_max_reaches_sockets_of_the_program") || !has_rto_max() {
        return;
    }
    sysctl("tcp_rto_max_ms", "100000");
    let printed = |variables: &[(&str, &str)]| {
        let mut command = preloaded("python3");
        let output = succeed(command.args(["-c", RTO_MAXIMA]).envs(variables.iter().copied()));
        assert_eq!(stderr(&output), "", "{variables:?}");
        let printed = String::from_utf8(output.stdout).unwrap();
        printed.split_whitespace().map(|number| number.parse().unwrap()).collect::<Vec<i32>>()
    };
    // 14 s + 2 s * 5 with 15 retransmissions: 1750 ms. With 16: 1615 ms. With 200: 1 s is too slow, but the least.
    for (retries, variables, expected) in [
        ("15", &[][..], [100_000; 3]),
        ("15", &[("KA_RTO_MAX", "2000")], [2000; 3]),
        ("15", &[("KA_RTO_MAX", "2s")], [2000; 3]),
        ("15", &[("KA_POLICY", "rto_max=1m")], [60_000; 3]),
        ("15", &[("KA_POLICY", "rto_max=1m"), ("KA_RTO_MAX", "keep")], [100_000; 3]),
        ("15", &[("KA_POLICY", "14,2,5"), ("KA_RTO_MAX", "auto")], [1750; 3]),
        ("16", &[("KA_POLICY", "idle=14,intvl=2,cnt=5,rto_max=auto")], [1615; 3]),
        ("200", &[("KA_POLICY", "14,2,5"), ("KA_RTO_MAX", "auto")], [1000; 3]),
        ("3", &[("KA_POLICY", "14,2,5"), ("KA_RTO_MAX", "auto")], [120_000; 3]),
        ("15", &[("KA_RTO_MAX", "3s"), ("KA_MODE", "default")], [3000; 3]),
        ("15", &[("KA_RTO_MAX", "3s"), ("KA_MODE", "floor")], [3000; 3]),
        // A rule decides about the connected end, and has its own automatic value.
        ("15", &[("KA_RTO_MAX", "auto"), ("KA_RULES", "peer=127.0.0.1 14,2,5")], [100_000, 1750, 1750]),
        ("15", &[("KA_RTO_MAX", "2s"), ("KA_RULES", "peer=127.0.0.1 skip")], [100_000; 3]),
    ] {
        sysctl("tcp_retries2", retries);
        let printed = printed(variables);
        let is_right = printed.len() == 3
            && printed.iter().zip(expected).all(|(value, wanted)| is_rounded_rto_max(*value, wanted));
        assert!(is_right, "{variables:?}: {printed:?}");
    }
}

/// The kernel is older than Linux 6.15 if it has net.ipv4.tcp_retries2, but not tcp_rto_max_ms.
#[test]
fn the_shim_names_a_missing_rto_max_once() {
    if !in_new_namespaces("the_shim_names_a_missing_rto_max_once", &["--net", "--mount"]) {
        return;
    }
    let moments = program!("moments");
    let script = "mount -t tmpfs none /proc/sys/net/ipv4 && echo 15 >/proc/sys/net/ipv4/tcp_retries2";
    succeed(Command::new("sh").args(["-c", script]));
    for (variables, is_named) in [
        (&[("KA_RTO_MAX", "2s")][..], true),
        (&[("KA_RTO_MAX", "auto")], true),
        (&[("KA_RULES", "rport=1 rto_max=2s; rport=2 rto_max=2s")], true),
        (&[("KA_RTO_MAX", "2s"), ("KA_QUIET", "1")], false),
        (&[("KA_RULES", "rport=1 idle=5")], false),
        (&[("KA_USER_TIMEOUT", "2s")], false),
    ] {
        let output = succeed(preloaded(&moments).arg("one").envs(variables.iter().copied()));
        let expected = if is_named { "ka: rto_max: needs Linux 6.15 or later; ignored\n" } else { "" };
        assert_eq!(stderr(&output), expected, "{variables:?}");
    }
    // Without /proc, the kernel is unknown.
    succeed(Command::new("rm").arg("/proc/sys/net/ipv4/tcp_retries2"));
    assert_eq!(stderr(&succeed(preloaded(&moments).arg("one").env("KA_RTO_MAX", "2s"))), "");
}

// Modes.

fn guard(mode: &str, more: &[(&str, &str)]) -> Vec<(String, String)> {
    let printed = stdout(preloaded(program!("guard")).env("KA_MODE", mode).envs(more.iter().copied()));
    lines(&printed).map(|(what, values)| (what.to_owned(), values.to_owned())).collect()
}

/// Checks the settings in force after each call. The program makes each call through the C library and as syscall(2),
/// with either length of the value. Each call must succeed, and leave errno unchanged. The program itself compares
/// rejected calls with those of the kernel.
fn assert_guard(mode: &str, more: &[(&str, &str)], expected: &[(&str, &str)]) {
    let said = guard(mode, more);
    for (what, values) in expected {
        let wanted = if what.starts_with("MPTCP") { (*values).to_owned() } else { format!("0 77, {values}") };
        let found: Vec<_> = said.iter().filter(|line| line.0 == *what).collect();
        assert!(!found.is_empty(), "no {what}");
        assert!(found.iter().all(|line| line.1 == wanted), "{mode}, {what}: {found:?}, not {wanted}");
    }
}

#[test]
fn force_keeps_the_policy_in_force() {
    let mut expected: Vec<_> = [
        "off",
        "on",
        "idle 600",
        "intvl 75",
        "cnt 9",
        "idle 5",
        "intvl 2",
        "cnt 3",
        "user timeout 0",
        "off by a duplicate",
    ]
    .map(|what| (what, "1 60 10 6 0"))
    .into();
    expected.push(("user timeout 1000", "1 60 10 6 1000"));
    // The user timeout must not exceed the time of the policy, 1000 * (60 + 10 * 6) ms.
    expected.push(("user timeout 999999", "1 60 10 6 120000"));
    expected.push(("MPTCP, idle 99999", "1 60 10 6 -95"));
    assert_guard("force", &[], &expected);
}

#[test]
fn force_and_floor_keep_the_user_timeout_of_the_policy() {
    for mode in ["force", "floor"] {
        let expected = ["user timeout 1000", "user timeout 999999", "user timeout 0"]
            .map(|what| (what, if mode == "force" { "1 60 10 6 5000" } else { "1 5 2 3 5000" }));
        assert_guard(mode, &[("KA_USER_TIMEOUT", "5000")], &expected);
    }
}

#[test]
fn floor_allows_stricter_settings() {
    assert_guard(
        "floor",
        &[],
        &[
            ("off", "1 60 10 6 0"),
            ("on", "1 60 10 6 0"),
            ("idle 600", "1 60 10 6 0"),
            ("intvl 75", "1 60 10 6 0"),
            ("cnt 9", "1 60 10 6 0"),
            ("idle 5", "1 5 10 6 0"),
            ("intvl 2", "1 5 2 6 0"),
            ("cnt 3", "1 5 2 3 0"),
            ("user timeout 999999", "1 5 2 3 120000"),
            ("off by a duplicate", "1 5 2 3 0"),
            ("MPTCP, idle 99999", "1 60 10 6 -95"),
        ],
    );
}

#[test]
fn default_allows_all_settings_of_the_program() {
    assert_guard(
        "default",
        &[],
        &[
            ("off", "0 60 10 6 0"),
            ("idle 600", "1 600 10 6 0"),
            ("cnt 3", "1 5 2 3 0"),
            ("user timeout 999999", "1 5 2 3 999999"),
            ("off by a duplicate", "0 5 2 3 0"),
        ],
    );
}

// Side effects that the shim must never have.

/// If rules match the peer, the shim sets the policy at connect. Until then the program may change its own settings,
/// and the shim must respect them.
#[test]
fn default_with_rules_keeps_settings_made_before_connect() {
    if !in_own_network_namespace("default_with_rules_keeps_settings_made_before_connect") {
        return;
    }
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let script = format!(
        "import socket as s
k = s.socket()
def say(option, value, level=s.IPPROTO_TCP): k.setsockopt(level, option, value)
def on(value): say(s.SO_KEEPALIVE, value, s.SOL_SOCKET)
def wrong():
    try: say(s.TCP_KEEPIDLE, 0)
    except OSError: pass
exec(__import__('sys').argv[1])
k.connect(('127.0.0.1', {port}))
print(k.getsockopt(s.SOL_SOCKET, s.SO_KEEPALIVE), *(k.getsockopt(s.IPPROTO_TCP, o) for o in (4, 5, 6)))
if 'say(44' in __import__('sys').argv[1]: print(k.getsockopt(6, 44))"
    );
    for rules in [format!("rport={port} idle=20,rto_max=2s"), "idle=20,rto_max=2s".to_owned()] {
        for (said, expected) in [
            ("", "1 20 10 6\n"),
            ("on(1)", "1 20 10 6\n"),
            ("on(1); say(s.TCP_KEEPIDLE, 33)", "1 33 10 6\n"),
            ("say(s.TCP_KEEPCNT, 3)", "1 20 10 3\n"),
            ("on(0)", "0 7200 75 9\n"),
            ("wrong()", "1 20 10 6\n"),
            ("say(44, 5000)", "1 20 10 6\n5000\n"),
            ("# not say(44", "1 20 10 6\n2000\n"),
        ] {
            if said.contains("44") && !has_rto_max() {
                continue;
            }
            let mut command = preloaded("python3");
            command.args(["-c", &script, said]).env("KA_MODE", "default").env("KA_RULES", &rules);
            assert_eq!(stdout(&mut command), expected, "{rules}: {said}");
        }
    }
}

#[test]
fn the_shim_works_at_every_moment_of_a_process() {
    let moments = program!("moments");
    for moment in ["signal", "vfork", "clone", "close", "filter", "cancel", "environment"] {
        let printed = stdout(preloaded(&moments).arg(moment));
        assert_eq!(printed, "well\n", "{moment}");
    }
}

#[test]
fn a_cancelled_thread_runs_the_destructors_of_its_callers() {
    let moments = compile(cc().arg("-fexceptions"), &source("moments"), Linkage::Nothing);
    assert_eq!(stdout(preloaded(moments).arg("cancel")), "well\n");
}

// Seccomp filters of the program, and sockets that are shared with another user.

#[test]
fn received_descriptors_do_not_kill_a_program_with_a_seccomp_filter() {
    if !in_own_network_namespace("received_descriptors_do_not_kill_a_program_with_a_seccomp_filter") {
        return;
    }
    assert_eq!(stdout(preloaded(program!("filter")).arg("receives")), "well\n");
}

#[test]
fn a_program_with_a_seccomp_filter_survives_the_other_calls_of_the_shim() {
    if !in_own_network_namespace("a_program_with_a_seccomp_filter_survives_the_other_calls_of_the_shim") {
        return;
    }
    let (filter, log) = (program!("filter"), scratch("log"));
    assert_eq!(stdout(preloaded(&filter).arg("log").env("KA_LOG", &log)), "well\n");
    assert_eq!(fs::read_to_string(&log).unwrap(), "", "a line was written under the filter");
    let mut command = preloaded(&filter);
    assert_eq!(stdout(command.arg("rules").env("KA_RULES", "peer=10.0.0.0/8 skip")), "well\n");
    for flags in PLUGINS {
        let plugin = library_with("plugin", flags);
        assert_eq!(stdout(preloaded(&filter).arg("dlsym").arg(plugin)), "well\n", "{flags:?}");
    }
}

#[test]
fn the_signal_mask_is_unchanged_if_a_filter_refuses_to_change_it() {
    // The log file may not grow. A line would raise SIGXFSZ, which ends the program unless it is blocked.
    let mut command = preloaded("sh");
    command.args(["-c", "ulimit -f 0 && exec \"$0\" mask"]).arg(program!("filter"));
    assert_eq!(stdout(command.env("KA_LOG", scratch("log"))), "well\n");
    // This log file may grow. It contains only the lines that the shim wrote without a denied call.
    let log = scratch("log");
    assert_eq!(stdout(preloaded(program!("filter")).arg("mask").env("KA_LOG", &log)), "well\n");
    let lines = fs::read_to_string(&log).unwrap();
    assert_eq!(
        lines.matches("denied SO_KEEPALIVE=0").count(),
        1,
        "the shim must make this call once: {lines}"
    );
}

#[test]
fn a_socket_from_another_user_gets_the_policy_when_it_is_used() {
    if !in_own_network_namespace("a_socket_from_another_user_gets_the_policy_when_it_is_used") {
        return;
    }
    let moments = program!("moments");
    assert_eq!(stdout(preloaded(&moments).arg("stranger")), "well\n");
    assert_eq!(stdout(preloaded(&moments).arg("stranger").env("KA_MODE", "default")), "well\n");
}

/// Other calls could block on a user who shares the descriptor: on a lock, or on the server of a FUSE file system.
#[test]
fn a_descriptor_from_another_user_gets_one_call_that_reads_its_flags() {
    if !in_own_network_namespace("a_descriptor_from_another_user_gets_one_call_that_reads_its_flags") {
        return;
    }
    let log = scratch("strace");
    let mut command = Command::new("strace");
    command.arg("-E").arg(format!("LD_PRELOAD={}", shim().display())).arg("-o").arg(&log);
    succeed(command.arg(program!("moments")).arg("stranger"));
    let log = fs::read_to_string(log).unwrap();
    let received = log.lines().skip_while(|line| !line.starts_with("recvmsg(")).skip(1);
    let calls: Vec<_> = received.take_while(|line| !line.starts_with("close(")).collect();
    let mut on_it = 0;
    for call in &calls {
        if call.starts_with("fcntl(") && call.contains("F_GETFL") {
            on_it += 1;
        } else {
            assert!(call.starts_with("getresuid(") || call.contains("SO_PEERCRED"), "{calls:?}");
        }
    }
    assert_eq!(on_it, 1, "{calls:?}");
}

const NO_ATTACK: &str = "no attack: needs userfaultfd(2), and a second user in this user namespace";

#[test]
fn a_locked_socket_from_another_user_does_not_block_a_daemon_of_root() {
    if !is_root() {
        skip("only root may run processes as two users");
        return;
    }
    let output = preloaded(program!("lock")).arg("message").output().unwrap();
    if output.status.code() == Some(77) {
        skip(NO_ATTACK);
    } else {
        assert_eq!(String::from_utf8_lossy(&output.stdout), "well\n", "{output:?}");
    }
}

#[test]
fn a_locked_socket_of_its_user_does_not_block_a_setuid_program() {
    if !is_root() {
        skip("only root may make a program setuid");
        return;
    }
    let folder = PublicFolder::new("lock");
    let (setuid, preload) = (folder.join("moments"), folder.join("libka_preload.so"));
    copy_program(program!("moments"), &setuid);
    copy_program(shim(), &preload);
    fs::set_permissions(&setuid, fs::Permissions::from_mode(0o4755)).unwrap();
    let output = with_own_etc(&format!(
        "echo {} > /etc/ld.so.preload; {} exec {} one || echo status $?",
        preload.display(),
        program!("lock").display(),
        setuid.display()
    ));
    let printed = String::from_utf8_lossy(&output.stdout);
    if printed == "status 77\n" {
        skip(NO_ATTACK);
    } else {
        assert_eq!(printed, "1 60 10 6 0\nwell\nwell\n", "{output:?}");
    }
}

#[test]
fn reused_descriptors_are_examined_again() {
    if !in_own_network_namespace("reused_descriptors_are_examined_again") {
        return;
    }
    let moments = program!("moments");
    for (moment, rules) in [
        ("syn-sent", "peer=10.0.0.0/8 skip"),
        ("outlived", "peer=10.0.0.0/8 skip"),
        ("number", "lport=9 skip"),
        ("before", "lport=1024-65535 skip"),
        ("unseen", ""),
    ] {
        assert_eq!(stdout(preloaded(&moments).arg(moment).env("KA_RULES", rules)), "well\n", "{moment}");
    }
    // If rules match local ports, a port that the kernel chooses at connect must not undo the policy.
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let printed = stdout(preloaded(program!("peers")).arg(&port).env("KA_RULES", "lport=1024-65535 skip"));
    let after = lines(&printed).find(|line| line.0 == "one, turned off").unwrap();
    assert_eq!(after.1, "1 60 10 6 0");
}

#[test]
fn messages_of_the_shim_never_end_the_program() {
    let moments = program!("moments");
    // Nothing reads the message.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status =
        preloaded(&moments).arg("one").env("KA_IDLE", "abc").stdout(Stdio::null()).stderr(writer).status();
    assert_eq!(status.unwrap().code(), Some(0));
    // The log file may not grow.
    let log = scratch("log");
    let mut command = preloaded("sh");
    command.args(["-c", "ulimit -f 0 && \"$0\" one | cat"]).arg(&moments).env("KA_LOG", &log);
    assert_eq!(stdout(&mut command), "1 60 10 6 0\nwell\n");
}

#[test]
fn sockets_of_all_threads_and_forks_have_the_policy() {
    let moments = program!("moments");
    stdout(preloaded(&moments).args(["hammer", "20"]));
    stdout(preloaded(&moments).args(["hammer", "2"]).env("KA_RULES", "peer=10.0.0.0/8 skip"));
    stdout(preloaded(&moments).args(["hammer", "2"]).env("KA_MODE", "floor"));
}

/// The policy's time is 1 + 1 · 2 s, the program's is 12 s.
#[test]
fn a_dead_peer_is_found_within_the_time_of_the_policy() {
    if !in_own_network_namespace("a_dead_peer_is_found_within_the_time_of_the_policy") {
        return;
    }
    let printed = stdout(preloaded(program!("moments")).arg("dead").env("KA_POLICY", "1,1,2"));
    let (errno, seconds) = printed.lines().next().unwrap().split_once(' ').unwrap();
    // Without a route, the kernel may report this error instead of ETIMEDOUT.
    let errnos = [libc::ETIMEDOUT, libc::EHOSTUNREACH, libc::ENETUNREACH].map(|errno| errno.to_string());
    assert!(errnos.contains(&errno.to_owned()), "{printed}");
    let seconds: f64 = seconds.parse().unwrap();
    assert!((2.5..10.0).contains(&seconds), "found after {seconds} s");
}

#[test]
fn valgrind_finds_no_error() {
    let mut command = preloaded("valgrind");
    command.args(["--quiet", "--error-exitcode=9", "--leak-check=full"]).arg(program!("sockets"));
    assert!(stdout(&mut command).starts_with("TCP: 1 60 10 6 0\n"));

    let mut command = preloaded("valgrind");
    command.args(["--quiet", "--error-exitcode=9"]).arg(program!("moments")).args(["hammer", "3"]);
    assert!(stdout(&mut command).ends_with("well\n"));
}

#[test]
fn constructors_that_run_before_the_shim_are_harmless() {
    let early = library("early");
    let main = compile(cc().arg("-Wl,--no-as-needed").arg(&early), &source("early_main"), Linkage::Nothing);
    assert_eq!(
        stdout(&mut preloaded(main)),
        "1 60 10 6 0\n",
        "its socket is already open when the shim is loaded"
    );
}

#[test]
fn inherited_sockets_get_the_policy_when_the_program_starts() {
    if !in_own_network_namespace("inherited_sockets_get_the_policy_when_the_program_starts") {
        return;
    }
    let moments = program!("moments");
    let inherited_as = |what: &str, fd: &OwnedFd, mode: &str| {
        let number = fd.as_raw_fd();
        let mut command = preloaded(&moments);
        // SAFETY: the closure makes only async-signal-safe calls, which are allowed between fork and exec.
        unsafe {
            command.pre_exec(move || {
                libc::dup2(number, 5);
                // If the descriptor is already 5, dup2 does not clear FD_CLOEXEC.
                libc::fcntl(5, libc::F_SETFD, 0);
                Ok(())
            })
        };
        stdout(command.arg(what).env("KA_MODE", mode)).lines().next().unwrap().to_owned()
    };
    let inherited = |fd: &OwnedFd, mode: &str| inherited_as("inherited", fd, mode);
    let listener: OwnedFd = TcpListener::bind("127.0.0.1:0").unwrap().into();
    assert_eq!(inherited(&listener, "force"), "1 60 10 6 0");

    // A connection in the queue has inherited the settings that the listener had at that time.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    set_option(listener.as_raw_fd(), libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
    let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    assert_eq!(inherited_as("accept", &listener.into(), "force"), "1 60 10 6 0");

    // The parent has set another policy. It is stricter in one way and looser in another, and has a long user timeout.
    let set = || {
        let fd = fresh();
        for (level, name, value) in [
            (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 30),
            (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, 75),
            (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 600_000),
            (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
        ] {
            set_option(fd.as_raw_fd(), level, name, value);
        }
        fd
    };
    assert_eq!(inherited(&set(), "force"), "1 60 10 6 120000");
    assert_eq!(inherited(&set(), "floor"), "1 30 10 6 120000");
    assert_eq!(
        inherited(&set(), "default"),
        "1 30 75 9 600000",
        "default must keep the settings of a socket with keepalive on"
    );
    assert_eq!(inherited(&fresh(), "default"), "1 60 10 6 0");
}

#[test]
fn the_shim_chains_with_another_shim_in_either_order() {
    let sockets = program!("sockets");
    let alone = stdout(&mut preloaded(&sockets));
    // The second one looks up the next function in the C library itself, as torsocks does.
    for other in [library("chain"), library_with("chain", &["-DBY_HANDLE"])] {
        for order in [[&other, &shim()], [&shim(), &other]] {
            let preload = order.map(|path| path.to_str().unwrap().to_owned()).join(":");
            let output = succeed(preloaded(&sockets).env("LD_PRELOAD", &preload).env("CHAIN_SHOW", "1"));
            assert_eq!(String::from_utf8_lossy(&output.stdout), alone, "{preload}");
            assert_eq!(
                stderr(&output),
                "counted 1 1 0\n",
                "the other shim must see the program's calls, and no call of our shim: {preload}"
            );
            let output =
                succeed(preloaded(program!("guard")).env("LD_PRELOAD", &preload).env("CHAIN_SHOW", "1"));
            assert!(stderr(&output).starts_with("counted 1 "), "{preload}");
        }
    }
}

// Libraries that the program opens, and functions that it looks up.

/// Options for compiling tests/c/preload/plugin.c, so that its calls go through each kind of slot.
const PLUGINS: [&[&str]; 4] =
    [&["-Wl,-z,lazy"], &["-Wl,-z,now"], &["-fno-plt"], &["-DTABLE", "-Wl,-z,now", "-Wl,-z,relro"]];

#[test]
fn libraries_opened_with_deepbind_have_the_policy() {
    let deepbind = program!("deepbind");
    for flags in PLUGINS {
        let plugin = library_with("plugin", flags);
        for how in [&["lazy", "deepbind"][..], &["now", "deepbind"], &["lazy"], &["now"]] {
            let open = |mut command: Command| stdout(command.arg("sockets").arg(&plugin).args(how));
            let printed = open(preloaded(&deepbind));
            let values: Vec<_> = lines(&printed).map(|(_, values)| values).collect();
            assert_eq!(values, ["1 60 10 6 0"; 6], "{flags:?}, {how:?}:\n{printed}");
            let printed = open(Command::new(&deepbind));
            assert!(
                lines(&printed).all(|(_, values)| values.starts_with('0')),
                "without the shim: {printed}"
            );
        }
    }
}

#[test]
fn a_library_opened_with_deepbind_keeps_its_own_functions() {
    let folder = scratch("own");
    fs::create_dir(&folder).unwrap();
    let own = folder.join("libown.so");
    fs::rename(library_with("plugin", &["-DOWN"]), &own).unwrap();
    let rpath = format!("-Wl,-rpath,{}", folder.display());
    for flags in PLUGINS {
        let plugin = folder.join("plugin.so");
        let mut compiler = cc();
        compiler.args(["-shared", "-fPIC"]).args(flags).arg(&rpath).arg("-o").arg(&plugin);
        succeed(compiler.arg(source("plugin")).arg(&own));
        for how in [["lazy", "deepbind"], ["now", "deepbind"]] {
            let open = |mut command: Command| stdout(command.arg("own").arg(&plugin).args(how));
            let printed = open(preloaded(program!("deepbind")));
            assert!(printed.starts_with("own "), "{flags:?}, {how:?}: {printed}");
            assert_eq!(printed, open(Command::new(program!("deepbind"))), "{flags:?}, {how:?}");
        }
    }
}

#[test]
fn sockets_of_a_library_s_constructor_have_the_policy_once_the_program_looks_into_the_library() {
    if !in_own_network_namespace(
        "sockets_of_a_library_s_constructor_have_the_policy_once_the_program_looks_into_the_library",
    ) {
        return;
    }
    let plugin = library_with("plugin", &["-DEARLY"]);
    for how in ["lazy", "now"] {
        let printed =
            stdout(preloaded(program!("deepbind")).arg("early").arg(&plugin).args([how, "deepbind"]));
        assert_eq!(printed, "before: 0 7200 75 9 0\nafter: 1 60 10 6 0\n");
    }
}

#[test]
fn threads_may_open_and_close_libraries_at_the_same_time() {
    let folder = scratch("threads");
    fs::create_dir(&folder).unwrap();
    let plugin = library_with("plugin", &["-Wl,-z,lazy"]);
    for n in 0..4 {
        copy_program(&plugin, folder.join(format!("plugin{n}.so")));
    }
    let printed = stdout(preloaded(program!("deepbind")).arg("threads").arg(folder.join("plugin")));
    assert_eq!(printed, "well\n");
}

#[test]
fn a_look_up_waits_for_a_library_that_another_thread_is_opening() {
    let plugin = library_with("plugin", &["-DSLOW", "-Wl,-z,now"]);
    let printed = stdout(preloaded(program!("deepbind")).arg("while opening").arg(plugin));
    assert_eq!(printed, "1 60 10 6 0\n");
}

/// The output of tests/c/preload/deepbind.c if every look-up of each hooked function finds the hook.
const ALL_ARE_HOOKS: &str = "accept: 1 1 1\naccept4: 1 1 1\nconnect: 1 1 1\ndlopen: 1 1 1\ndlsym: 1 1 1\nlisten: 1 1 1\nprctl: 1 1 1\n\
    recvmmsg: 1 1 1\nrecvmsg: 1 1 1\nsendmmsg: 1 1 1\nsendmsg: 1 1 1\nsendto: 1 1 1\nsetsockopt: 1 1 1\n\
    socket: 1 1 1\nsyscall: 1 1 1\nset: 1 60 10 6 0\n";

#[test]
fn functions_looked_up_in_the_c_library_are_the_hooks() {
    if !in_own_network_namespace("functions_looked_up_in_the_c_library_are_the_hooks") {
        return;
    }
    let plugin = library_with("plugin", &[]);
    let plugins = [&[][..], &["lazy", "deepbind"], &["now", "deepbind"]];
    for how in plugins {
        let look_up = |mut command: Command| {
            stdout(command.args(["look up", "libc.so.6"]).args(how).env("PLUGIN", &plugin))
        };
        let printed = look_up(preloaded(program!("deepbind")));
        assert_eq!(printed, ALL_ARE_HOOKS, "{how:?}");
        let off = look_up({
            let mut command = preloaded(program!("deepbind"));
            command.env("KA_POLICY", "off");
            command
        });
        assert!(off.contains("socket: 0 1 ") && off.ends_with("set: 0 7000 75 9 0\n"), "{off}");
    }
    // If another shim defines the function and comes after ka's shim in load order, a look-up in the C library must not
    // find the hook. The other shim may be the caller, and the hook would call it again.
    let other = library("chain");
    let preload = format!("{}:{}", shim().display(), other.display());
    let printed =
        stdout(preloaded(program!("deepbind")).args(["look up", "libc.so.6"]).env("LD_PRELOAD", &preload));
    for (what, found) in [("connect", "0 1 1"), ("setsockopt", "0 1 1"), ("listen", "1 1 1")] {
        assert_eq!(lines(&printed).find(|line| line.0 == what).unwrap().1, found, "{what} in {printed}");
    }
}

#[test]
fn musl_programs_may_look_into_their_c_library_too() {
    let mut compiler = Command::new("musl-gcc");
    compiler.arg("-I").arg(root().join("tests/c/preload")).arg("-pthread");
    let program = compile(&mut compiler, &source("deepbind"), Linkage::Nothing);
    let printed = stdout(preloaded(program).args(["look up", "libc.so"]));
    assert_eq!(printed, ALL_ARE_HOOKS);
}

// Costs.

#[test]
fn accepted_connections_cost_one_call_and_transfers_none() {
    let log = scratch("strace");
    let mut command = Command::new("strace");
    let mut preload = OsString::from("LD_PRELOAD=");
    preload.push(shim());
    succeed(command.arg("-E").arg(preload).arg("-o").arg(&log).arg(program!("data")));
    let log = fs::read_to_string(log).unwrap();
    let parts: Vec<Vec<&str>> = log
        .split("close(-77)")
        .skip(1)
        .map(|part| part.lines().skip(1).filter_map(|line| Some(line.split_once('(')?.0)).collect())
        .collect();
    assert_eq!(
        parts[..5],
        [vec!["accept", "getsockopt"], vec!["sendto"], vec!["recvmsg"], vec!["sendmsg"], vec!["recvfrom"]]
    );
}

// The log, the file, and programs that have more rights than their user.

#[test]
fn the_log_has_a_line_for_each_socket_and_each_denied_call() {
    let log = scratch("log");
    stdout(preloaded(program!("moments")).arg("one").env("KA_LOG", &log));
    let said = fs::read_to_string(&log).unwrap();
    assert!(said.starts_with("moments-") && said.ends_with("] fd 3: set idle=60,intvl=10,cnt=6\n"), "{said}");
    assert_eq!(fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o600);

    stdout(preloaded(program!("guard")).env("KA_LOG", &log));
    let said = fs::read_to_string(&log).unwrap();
    for denied in ["denied SO_KEEPALIVE=0", "denied TCP_KEEPIDLE=600", "denied TCP_USER_TIMEOUT=999999"] {
        assert!(said.lines().any(|line| line.ends_with(denied)), "no {denied}");
    }

    // The shim opens the log with O_CLOEXEC, so no other program inherits it, and without blocking on a FIFO.
    let calls = scratch("strace");
    let mut command = Command::new("strace");
    command.args(["-f", "-e", "trace=openat", "-o"]).arg(&calls).arg("-E");
    command
        .arg(format!("LD_PRELOAD={}", shim().display()))
        .arg(program!("moments"))
        .arg("one")
        .env("KA_LOG", &log);
    stdout(&mut command);
    let calls = fs::read_to_string(&calls).unwrap();
    let opened: Vec<_> = calls.lines().filter(|line| line.contains(log.to_str().unwrap())).collect();
    assert!(!opened.is_empty(), "{calls}");
    for flag in ["O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK", "O_APPEND"] {
        assert!(opened.iter().all(|line| line.contains(flag)), "{flag}: {opened:?}");
    }

    // If the log is a symbolic link, the shim writes nothing, and the program continues.
    let (link, target) = (scratch("link"), scratch("target"));
    symlink(&target, &link).unwrap();
    let output = succeed(preloaded(program!("moments")).arg("one").env("KA_LOG", &link));
    assert!(stderr(&output).ends_with("must be a file that this user can write; ignored\n"));
    assert!(!target.exists());
}

/// This user cannot open files of another user. The shim prints each of them once, when it is loaded.
#[test]
fn the_shim_names_unreadable_files_once() {
    if !is_root() {
        skip("only root may have an /etc of its own and become another user");
        return;
    }
    let folder = PublicFolder::new("files");
    let (library, program) = (folder.join("libka_preload.so"), folder.join("moments"));
    copy_program(shim(), &library);
    copy_program(program!("moments"), &program);
    let run = |before: &str, environment: &str| {
        let output = with_own_etc(&format!(
            "{before}; {NOBODY} env {environment} LD_PRELOAD={} {} one",
            library.display(),
            program.display()
        ));
        (
            String::from_utf8(output.stdout.clone()).unwrap().lines().next().unwrap().to_owned(),
            stderr(&output),
        )
    };
    let log = folder.join("log");
    let conf = run("echo KA_IDLE=9 >/etc/ka.conf; chmod 600 /etc/ka.conf", "KA_CNT=4");
    let quiet = run("echo KA_IDLE=9 >/etc/ka.conf; chmod 600 /etc/ka.conf", "KA_QUIET=1");
    let readable = run("echo KA_IDLE=9 >/etc/ka.conf; chmod 644 /etc/ka.conf", "KA_CNT=4");
    let missing = run("rm -f /etc/ka.conf", "KA_CNT=4");
    let logged = run(
        &format!("rm -f /etc/ka.conf; install -m 600 /dev/null {0}", log.display()),
        &format!("KA_LOG={}", log.display()),
    );
    let lines = fs::read_to_string(&log).unwrap();
    let complaint = "ka: /etc/ka.conf: must be a regular file that belongs to root, readable by all, writable by nobody else; ignored\n";
    assert_eq!(conf, ("1 60 10 4 0".into(), complaint.into()));
    assert_eq!(quiet, ("1 60 10 6 0".into(), String::new()));
    assert_eq!(readable, ("1 9 10 4 0".into(), String::new()));
    assert_eq!(missing, ("1 60 10 4 0".into(), String::new()));
    let complaint =
        format!("ka: KA_LOG=\"{}\": must be a file that this user can write; ignored\n", log.display());
    assert_eq!((logged, lines.as_str()), (("1 60 10 6 0".into(), complaint), ""));
}

#[test]
fn the_file_is_read_first_and_the_environment_overrides_it() {
    if !is_root() {
        skip("only root may have an /etc of its own");
        return;
    }
    if !in_own_network_namespace("the_file_is_read_first_and_the_environment_overrides_it") {
        return;
    }
    let moments = program!("moments");
    let run = |file: &str, before: &str, environment: &str| {
        let output = with_own_etc(&format!(
            "cat > /etc/ka.conf <<'END'\n{file}\nEND\n{before}\nenv {environment} LD_PRELOAD={} {} one",
            shim().display(),
            moments.display()
        ));
        (
            String::from_utf8(output.stdout.clone()).unwrap().lines().next().unwrap().to_owned(),
            stderr(&output),
        )
    };
    let file = "# a comment\n\nKA_POLICY=\"30,5,3\"\n KA_CNT=4 \nKA_NONSENSE=1\n";
    let complaint = "ka: /etc/ka.conf: \"KA_NONSENSE=1\": must be a KA_ variable and its value; ignored\n";
    assert_eq!(run(file, "", ""), ("1 30 5 4 0".into(), complaint.into()));
    assert_eq!(run(file, "", "KA_QUIET=1 KA_CNT=5 KA_IDLE=9"), ("1 9 5 5 0".into(), String::new()));
    assert_eq!(run("KA_POLICY=30,5,3", "", "KA_QUIET=1 KA_POLICY=x"), ("1 30 5 3 0".into(), String::new()));
    assert_eq!(run("KA_SKIP=chrome,moments-*", "", ""), ("0 7200 75 9 0".into(), String::new()));
    // If another user may write the file, the shim ignores it.
    for before in ["chmod 666 /etc/ka.conf", "chmod g+w /etc/ka.conf", "chown 65534 /etc/ka.conf"] {
        let (values, complaint) = run("KA_POLICY=30,5,3", before, "");
        assert_eq!(values, "1 60 10 6 0");
        assert!(complaint.contains("must be a regular file that belongs to root"), "{complaint}");
    }
}

#[test]
fn setuid_programs_ignore_the_environment() {
    if !is_root() {
        skip("only root may make a program setuid");
        return;
    }
    if !in_own_network_namespace("setuid_programs_ignore_the_environment") {
        return;
    }
    let log = scratch("log");
    let folder = PublicFolder::new("setuid");
    let (setuid, preload) = (folder.join("moments"), folder.join("libka_preload.so"));
    let capable = folder.join("capable");
    copy_program(program!("moments"), &setuid);
    copy_program(program!("moments"), &capable);
    succeed(Command::new("setcap").arg("cap_net_raw+ep").arg(&capable));
    copy_program(shim(), &preload);
    fs::set_permissions(&setuid, fs::Permissions::from_mode(0o4755)).unwrap();
    let run_with = |conf: &str, user: &str, command: &str| {
        let output = with_own_etc(&format!(
            "echo {} > /etc/ld.so.preload; printf '{conf}' > /etc/ka.conf; {user} {command} one",
            preload.display(),
        ));
        String::from_utf8(output.stdout).unwrap().lines().next().unwrap_or_default().to_owned()
    };
    let run = |user: &str, program: &Path| {
        let environment = format!("env KA_IDLE=9 KA_POLICY=off KA_LOG={}", log.display());
        run_with("KA_CNT=4\\n", user, &format!("{environment} {}", program.display()))
    };
    let as_nobody = run(NOBODY, &setuid);
    let with_capability = run(NOBODY, &capable);
    let as_root = run("", &setuid);
    // The caller chooses argv[0], so it may not select an entry of KA_SKIP for a program with more rights.
    let named = |user: &str, program: &Path| {
        let command = format!("bash -c 'exec -a sshd \"$0\" \"$@\"' {}", program.display());
        run_with("KA_SKIP=sshd\\n", user, &command)
    };
    let named_as_nobody = [named(NOBODY, &setuid), named(NOBODY, &capable)];
    let named_as_root = named("", &setuid);
    let skipped = run_with("KA_SKIP=moments\\n", NOBODY, &setuid.display().to_string());
    for values in named_as_nobody {
        assert_eq!(values, "1 60 10 6 0", "a user turned keepalive off in a program with more rights");
    }
    assert_eq!(
        named_as_root, "0 7200 75 9 0",
        "a program without more rights than its user must use argv[0]"
    );
    assert_eq!(skipped, "0 7200 75 9 0", "every program must use the name of the executable");
    assert_eq!(as_nobody, "1 60 10 4 0", "a setuid program must use the file, and ignore the environment");
    assert_eq!(with_capability, "1 60 10 4 0", "a program with a capability must ignore the environment too");
    assert!(!log.exists(), "a user could choose a file that root writes");
    assert_eq!(
        as_root, "0 7200 75 9 0",
        "a program without more rights than its user must use the environment"
    );
}
