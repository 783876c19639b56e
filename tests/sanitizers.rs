//! Runs C programs that use libka, including the examples, with the compiler's sanitizers and under valgrind. Also runs
//! programs that were built with sanitizers under the shim. `make sanitize` runs more of them, and with a libka that is
//! itself built with sanitizers.

use std::ffi::OsString;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use ka_test::artifact::shim;
use ka_test::child::{preloaded, stdout, succeed};
use ka_test::compiler::{Linkage, cc, compile};
use ka_test::example::Server;
use ka_test::log::skip;
use ka_test::path::{root, scratch};

/// The values of -fsanitize for clang.
const SANITIZERS: [&str; 2] = ["address,undefined", "thread"];

fn compiler(name: &str, sanitizer: &str) -> Command {
    let mut command = Command::new(name);
    command.args(["-std=gnu11", "-g", "-O1", "-pthread", "-Wall", "-fno-sanitize-recover=all"]);
    command.arg(format!("-fsanitize={sanitizer}"));
    command
}

/// Returns whether to run the tests that take minutes too, with many signals and calls. `make sanitize` requests it.
fn is_thorough() -> bool {
    std::env::var_os("KA_SANITIZERS").is_some_and(|which| which == "all")
}

/// The programs of tests/c, and the arguments of each run.
const PROGRAMS: [(&str, &[&[&str]]); 6] = [
    ("threads", &[&[]]),
    ("defaults", &[&[]]),
    ("nonce", &[&[]]),
    ("link", &[&[]]),
    ("trace", &[&["enable", "3"], &["server"], &["on", "30,3,2"], &["off", "30,3,2"], &["on", "off,cnt=1"]]),
    (
        "outcome",
        &[
            &["on", "enable"],
            &["off", "disable"],
            &["on", "query"],
            &["on", "get_status"],
            &["off", "defaults"],
            &["off", "beat_nonce"],
            &["on", "idle=30,intvl=3,cnt=2,user_timeout=auto"],
        ],
    ),
];

/// Runs a program with each of its arguments. `make` builds it with the wanted libka.
fn run(name: &str, runs: &[&[&str]], make: impl Fn(&Path) -> PathBuf, under: &[&str]) {
    let program = make(&root().join("tests/c").join(name).with_extension("c"));
    for arguments in runs {
        let mut words = under.iter().map(OsString::from).chain([program.clone().into_os_string()]);
        let mut command = Command::new(words.next().unwrap());
        // In a forked child, the thread sanitizer reports the parent's threads as leaks.
        command.env("TSAN_OPTIONS", "report_thread_leaks=0");
        // The leak check needs /proc and ptrace(2), which these programs take away from themselves.
        if ["defaults", "nonce"].contains(&name) {
            command.env("ASAN_OPTIONS", "detect_leaks=0");
        }
        succeed(command.args(words).args(*arguments));
    }
}

#[test]
fn sanitizers_find_no_fault_in_c_programs() {
    thread::scope(|scope| {
        for sanitizer in SANITIZERS {
            scope.spawn(move || {
                for (name, runs) in PROGRAMS.iter().filter(|(name, _)| is_thorough() || *name != "threads") {
                    let make =
                        |source: &Path| compile(&mut compiler("clang", sanitizer), source, Linkage::Static);
                    run(name, runs, make, &[]);
                }
            });
        }
    });
}

#[test]
fn valgrind_finds_no_fault_in_c_programs() {
    let make = |source: &Path| compile(&mut cc(), source, Linkage::Static);
    thread::scope(|scope| {
        scope.spawn(|| {
            let memcheck = ["valgrind", "--quiet", "--error-exitcode=9", "--leak-check=full"];
            // Some programs take away descriptors and calls that valgrind needs too. valgrind is too slow for the
            // program with many signals.
            for (name, runs) in PROGRAMS {
                if !["defaults", "nonce", "threads"].contains(&name) {
                    run(name, runs, make, &memcheck);
                }
            }
        });
        if !is_thorough() {
            return;
        }
        scope.spawn(|| {
            let known = format!("--suppressions={}", root().join("tests/c/helgrind.supp").display());
            let helgrind = ["valgrind", "--quiet", "--error-exitcode=9", "--tool=helgrind", &known];
            run("threads", &[&[]], make, &helgrind);
        });
    });
}

/// `scripts/sanitize` builds this libka, and sets KA_SANITIZED to its path.
#[test]
#[ignore = "needs a libka that is built with a sanitizer: make sanitize"]
fn sanitizers_find_no_fault_in_libka() {
    let libka = std::env::var_os("KA_SANITIZED").expect("KA_SANITIZED is not set: run `make sanitize`");
    let sanitizer = std::env::var("KA_SANITIZER").unwrap();
    for (name, runs) in PROGRAMS {
        let make = |source: &Path| {
            let mut command = compiler("clang", &sanitizer);
            let object = compile(command.arg("-c"), source, Linkage::Nothing);
            let program = scratch(name);
            let mut link = compiler("clang", &sanitizer);
            link.arg("-o").arg(&program).arg(object).arg(&libka);
            if sanitizer == "thread" {
                link.arg(root().join("tests/c/sanitizer_names.c"));
            }
            succeed(&mut link);
            program
        };
        run(name, runs, make, &[]);
    }
}

/// Builds an example with clang.
fn example(name: &str, sources: &[&str], sanitizer: &str) -> PathBuf {
    let folder = root().join("c-examples");
    let mut command = compiler("clang", sanitizer);
    command.args(sources.iter().map(|source| folder.join(source)));
    compile(&mut command, &folder.join(name).with_extension("c"), Linkage::Static)
}

#[test]
fn sanitizers_find_no_fault_in_the_examples() {
    thread::scope(|scope| {
        for sanitizer in SANITIZERS {
            scope.spawn(move || examples(sanitizer));
        }
    });
}

fn examples(sanitizer: &str) {
    let plain = ["options.c", "sockets.c"];
    let signed = ["options.c", "sockets.c", "keys.c"];
    succeed(&mut Command::new(example("keepalive_check", &[], sanitizer)));

    // The echo server, a client that ends normally, and a client that closes the connection early.
    let (mut server, _) = Server::spawn(
        Command::new(example("tcp_keepalive_server", &plain, sanitizer)).arg("0").stderr(Stdio::null()),
    );
    let mut stream = server.connect();
    stream.write_all(b"word\n").unwrap();
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"word\n");
    assert!(server.line().ends_with(" connected"));
    let mut client = Command::new(example("tcp_keepalive_client", &plain, sanitizer))
        .arg(format!("127.0.0.1:{}", server.port))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    assert!(server.line().ends_with(" connected"));
    drop(stream);
    server.signal(libc::SIGTERM);
    assert!(server.child.wait().unwrap().success(), "{sanitizer}: the server has failed");
    assert!(client.wait().unwrap().success(), "{sanitizer}: the client has failed");

    // The heartbeat server, with a client and a stranger.
    let keys = scratch("keys");
    fs::write(&keys, format!("1 {}\n", "01".repeat(32))).unwrap();
    fs::set_permissions(&keys, fs::Permissions::from_mode(0o600)).unwrap();
    let mut server = Command::new(example("heartbeat_server", &signed, sanitizer));
    let (mut server, _) = Server::spawn(server.args(["-t", "1"]).arg(&keys).arg("0").stderr(Stdio::null()));
    let mut client = Command::new(example("heartbeat_client", &signed, sanitizer))
        .args(["-b", "1"])
        .arg(&keys)
        .arg(format!("127.0.0.1:{}", server.port))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    server.connect().write_all(&[0; 56]).unwrap();
    thread::sleep(Duration::from_millis(1500));
    server.signal(libc::SIGTERM);
    assert!(server.child.wait().unwrap().success(), "{sanitizer}: the heartbeat server has failed");
    assert!(client.try_wait().unwrap().is_none(), "{sanitizer}: the heartbeat client has ended");
    client.kill().unwrap();
    client.wait().unwrap();
}

/// A compiler and a sanitizer. The runtime of the sanitizer is linked statically, or is a library.
struct Host {
    compiler: &'static str,
    sanitizer: &'static str,
    flags: &'static [&'static str],
    /// The file name of the runtime, if it is a library.
    runtime: Option<&'static str>,
}

const HOSTS: [Host; 8] = [
    Host { compiler: "gcc", sanitizer: "address,undefined", flags: &[], runtime: Some("libasan.so") },
    Host { compiler: "gcc", sanitizer: "address,undefined", flags: &["-static-libasan"], runtime: None },
    Host { compiler: "gcc", sanitizer: "thread", flags: &[], runtime: Some("libtsan.so") },
    Host { compiler: "gcc", sanitizer: "thread", flags: &["-static-libtsan"], runtime: None },
    Host { compiler: "clang", sanitizer: "address,undefined", flags: &[], runtime: None },
    Host {
        compiler: "clang",
        sanitizer: "address,undefined",
        flags: &["-shared-libsan"],
        runtime: Some("libclang_rt.asan-x86_64.so"),
    },
    Host { compiler: "clang", sanitizer: "thread", flags: &[], runtime: None },
    Host {
        compiler: "clang",
        sanitizer: "thread",
        flags: &["-shared-libsan"],
        runtime: Some("libclang_rt.tsan-x86_64.so"),
    },
];

impl Host {
    fn path(&self) -> Option<PathBuf> {
        let name = self.runtime?;
        let path = stdout(Command::new(self.compiler).arg(format!("-print-file-name={name}")));
        Some(PathBuf::from(path.trim()))
    }

    fn make(&self, source: &Path) -> PathBuf {
        let mut command = compiler(self.compiler, self.sanitizer);
        command.args(self.flags);
        if let Some(folder) =
            self.path().as_deref().and_then(Path::parent).filter(|_| self.compiler == "clang")
        {
            command.arg(format!("-Wl,-rpath,{}", folder.display()));
        }
        compile(&mut command, source, Linkage::Nothing)
    }

    fn name(&self) -> String {
        format!("{} -fsanitize={} {}", self.compiler, self.sanitizer, self.flags.join(" "))
    }
}

#[test]
fn sanitized_programs_run_under_the_shim_in_either_order() {
    let nothing = scratch("nothing").with_extension("c");
    fs::write(&nothing, "int main(void) { return 0; }\n").unwrap();
    let source = root().join("tests/c/preload/moments.c");
    thread::scope(|scope| {
        for half in HOSTS.chunks(HOSTS.len() / 2) {
            let (nothing, source) = (&nothing, &source);
            scope.spawn(move || half.iter().for_each(|host| under_the_shim(host, nothing, source)));
        }
    });
}

/// `NAME=VALUE`
fn assignment(name: &str, value: &OsString) -> OsString {
    let mut text = OsString::from(name);
    text.push("=");
    text.push(value);
    text
}

fn under_the_shim(host: &Host, nothing: &Path, source: &Path) {
    if !Command::new(host.make(nothing)).status().unwrap().success() {
        skip(&format!("{}: an empty program does not run on this kernel", host.name()));
        return;
    }
    let program = host.make(source);
    let mut orders = vec![shim().into_os_string()];
    if let Some(runtime) = host.path() {
        let mut behind = runtime.into_os_string();
        behind.push(":");
        behind.push(shim());
        orders.push(behind);
    }
    for order in &orders {
        // With gcc's -fsanitize=thread, a program whose threads fork hangs even without the shim.
        let hammer: &[&str] = if host.sanitizer == "thread" { &["threads"] } else { &["hammer", "1"] };
        let moments = [&["one"][..], &["vfork"], &["close"], &["signal"], &["cancel"], hammer];
        // Run the slow moments only in the first order.
        let some = if *order == orders[0] { moments.len() - usize::from(!is_thorough()) } else { 3 };
        for moment in &moments[..some] {
            let mut command = preloaded("timeout");
            command.args(["120", "env"]).arg(assignment("LD_PRELOAD", order)).arg(&program).args(*moment);
            command.env_remove("LD_PRELOAD");
            // By default the runtime of AddressSanitizer refuses to start if another library precedes it.
            command.env("ASAN_OPTIONS", "verify_asan_link_order=0");
            let printed = stdout(&mut command);
            assert!(printed.ends_with("well\n"), "{} {moment:?}: {printed}", host.name());
        }
    }
}
