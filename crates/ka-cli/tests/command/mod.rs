//! Shared code of the command's tests: the release build of ka, and programs that report the options of their
//! sockets.

#![allow(dead_code, reason = "each test program uses its part of this")]

pub mod cgroups;
pub mod json;

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::sync::OnceLock;

use ka_test::artifact::release;
use ka_test::child::{remove_ka_variables, reset_signals, stdout, succeed};
use ka_test::compiler::{Linkage, cc, compile};
use ka_test::lines::Lines;
use ka_test::path::{root, scratch};
use ka_test::process;
use ka_test::socket::{established, keepalive_options, option, rto_max};

/// Python code that prints SO_KEEPALIVE, idle, intvl, cnt and user timeout of a new socket.
pub const FRESH: &str = "import socket; s = socket.socket(); \
    print(s.getsockopt(1, 9), *(s.getsockopt(6, n) for n in (4, 5, 6, 18)))";

/// Returns ka without any KA_ variables of the environment.
pub fn ka() -> Command {
    bare(release().join("ka"))
}

/// Returns a command without the KA_ variables and the ignored signals of the user who runs the tests.
pub fn bare(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    remove_ka_variables(&mut command);
    reset_signals(&mut command);
    command.env_remove("LD_PRELOAD").env_remove("NO_COLOR");
    command
}

/// Returns a counter of this network namespace, such as `TcpExtTCPKeepAlive`.
pub fn counter(name: &str) -> u32 {
    let text = stdout(Command::new("nstat").args(["-asz", name]));
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Runs a command as an unprivileged user.
pub fn as_nobody(command: &Command) -> Command {
    let mut wrapped = bare("setpriv");
    wrapped.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
    wrapped.arg(command.get_program()).args(command.get_args());
    wrapped
}

/// Returns the beginning of a command, to which the test appends the actual command. In that command, a system call
/// fails: always, or only if an argument has this value.
pub fn refusing(call: libc::c_long, errno: i32, argument: Option<(u32, i32)>) -> Command {
    // In struct seccomp_data, the number comes first, and the arguments start at offset 16.
    const REFUSE: &str = "import ctypes, os, struct, sys\n\
        call, errno, place, value = map(int, sys.argv[1:5])\n\
        libc = ctypes.CDLL(None)\n\
        filter = b''.join(struct.pack('HBBI', *insn) for insn in [(0x20, 0, 0, 0), (0x15, 0, 3, call),\n\
        \x20   (0x20, 0, 0, place), (0x15, 0, 1, value), (6, 0, 0, 0x50000 | errno), (6, 0, 0, 0x7fff0000)])\n\
        filter = ctypes.create_string_buffer(filter, 48)\n\
        program = struct.pack('HxxxxxxQ', 6, ctypes.addressof(filter))\n\
        assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program) == 0\n\
        os.execvp(sys.argv[5], sys.argv[5:])";
    let (place, value) = argument.map_or((0, call), |(place, value)| (16 + 8 * place, value.into()));
    let mut command = bare("python3");
    command.args(["-c", REFUSE]);
    command.args([call, errno.into(), place.into(), value].map(|number| number.to_string()));
    command
}

/// Returns the exit status, standard output and standard error of a command.
pub fn outcome(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let code = status.code().unwrap_or_else(|| panic!("{command:?}: {status}"));
    (code, text(stdout), text(stderr))
}

/// Returns the number that follows a word in a text.
pub fn number_after(text: &str, word: &str) -> i32 {
    let rest = text.split_once(word).unwrap_or_else(|| panic!("no {word}in {text:?}")).1;
    rest.split(|letter: char| !letter.is_ascii_digit()).next().unwrap().parse().unwrap()
}

/// Returns the path of a source in crates/ka-cli/tests/c.
pub fn source(name: &str) -> PathBuf {
    root().join("crates/ka-cli/tests/c").join(name).with_extension("c")
}

/// Builds the holder in C with these flags.
pub fn holder_with(compiler: &mut Command, flags: &[&str]) -> PathBuf {
    compile(compiler.args(flags), &source("holder"), Linkage::Nothing)
}

/// Returns the holder in C.
pub fn holder() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| holder_with(&mut cc(), &[]))
}

/// Returns the holder in C, statically linked.
pub fn static_holder() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| holder_with(&mut cc(), &["-static"]))
}

/// Returns the holder in Go.
pub fn go_holder() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| go_program("holder", false))
}

/// Builds a program of tests/go. With cgo, it is linked to the C library, but Go still makes the socket system calls
/// itself.
pub fn go_program(name: &str, cgo: bool) -> PathBuf {
    let output = scratch(&format!("{name}-go-{cgo}"));
    go_build(name, cgo, &[], &output);
    output
}

/// Builds a source of tests/go.
pub fn go_build(name: &str, cgo: bool, flags: &[&str], output: &Path) {
    static CACHE: OnceLock<PathBuf> = OnceLock::new();
    let mut go = Command::new("go");
    let source = root().join("crates/ka-cli/tests/go").join(name).with_extension("go");
    go.arg("build").args(flags).arg("-o").arg(output).arg(source);
    let cache = CACHE.get_or_init(|| scratch("go-cache"));
    succeed(
        go.env("CGO_ENABLED", if cgo { "1" } else { "0" }).env("GOCACHE", cache).env("GOFLAGS", "-mod=mod"),
    );
}

/// Builds a program of tests/c that makes system calls by its own instructions.
pub fn raw(flags: &[&str]) -> PathBuf {
    compile(cc().args(flags), &source("raw"), Linkage::Nothing)
}

/// Returns the kernel's values for the TCP sockets of a process and of its descendants, each socket once. They are
/// read from another process, through duplicates of the descriptors: pidfd_getfd(2), getsockopt(2).
pub fn socket_options(pid: i32) -> Vec<Options> {
    socket_options_except(pid, &[])
}

/// Does the same as [`socket_options`], but leaves out some descriptors.
pub fn socket_options_except(pid: i32, left: &[i32]) -> Vec<Options> {
    let mut found = Vec::new();
    for (fd, socket) in tcp_sockets(pid, left) {
        let [on, timers @ .., _] = keepalive_options(socket.as_raw_fd());
        found.push(Options { fd, on: on == Ok(1), timers: timers.map(Result::unwrap) });
    }
    found
}

/// Returns the value of `rto_max=auto` in a policy on this machine.
pub fn automatic_rto_max(policy: &str) -> i32 {
    let policy = ka_core::parse(policy.as_bytes()).unwrap();
    policy.resolved(ka_core::Retransmission::read().retries).timer(ka_core::Timer::RtoMax).unwrap()
}

/// Returns `TCP_RTO_MAX_MS` of the TCP sockets of a process and of its descendants, read like [`socket_options`].
pub fn rto_maxima(pid: i32) -> Vec<i32> {
    tcp_sockets(pid, &[]).iter().map(|(_, socket)| rto_max(socket.as_raw_fd())).collect()
}

/// Returns duplicates of the TCP sockets of a process and of its descendants, each socket once, without some
/// descriptors.
fn tcp_sockets(pid: i32, left: &[i32]) -> Vec<(i32, OwnedFd)> {
    let mut known = HashSet::new();
    let mut found = Vec::new();
    for pid in family(pid) {
        // A process that has ended has no sockets.
        let Ok(process) = process::open(pid) else { continue };
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            let Ok(link) = fs::read_link(entry.path()) else { continue };
            let fd: i32 = entry.file_name().to_str().unwrap().parse().unwrap();
            if left.contains(&fd) || !link.to_string_lossy().starts_with("socket:") || !known.insert(link) {
                continue;
            }
            let socket =
                process::duplicate(&process, fd).unwrap_or_else(|error| panic!("{pid} {fd}: {error}"));
            if option(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PROTOCOL) == Ok(libc::IPPROTO_TCP) {
                found.push((fd, socket));
            }
        }
    }
    found
}

/// Returns the PIDs of a process and of all its descendants.
fn family(pid: i32) -> Vec<i32> {
    let parent = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit(") ").next()?.split(' ').nth(1)?.parse::<i32>().ok()
    };
    let numbers = fs::read_dir("/proc").unwrap().flatten();
    let all = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let pairs: Vec<_> = all.filter_map(|pid| Some((pid, parent(pid)?))).collect();
    let mut family = vec![pid];
    let mut next = 0;
    while let Some(elder) = family.get(next).copied() {
        family.extend(pairs.iter().filter(|(_, parent)| *parent == elder).map(|(pid, _)| *pid));
        next += 1;
    }
    family
}

/// A running program. It has printed `stay` after its other output, and runs until its input ends.
pub struct WaitingProgram {
    child: Child,
    pub said: String,
}

impl WaitingProgram {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = Lines::new("the waiting program", child.stdout.take().unwrap());
        let said = lines.by_ref().take_while(|line| line != "stay").map(|line| line + "\n").collect();
        Self { child, said }
    }

    pub fn pid(&self) -> i32 {
        self.child.id().try_into().unwrap()
    }

    /// Returns the kernel's values for its sockets, and for those of its descendants.
    pub fn sockets(&self) -> Vec<Options> {
        socket_options(self.pid())
    }

    /// Asserts that there are `count` sockets, and that all have this policy.
    #[track_caller]
    pub fn assert_all(&self, count: usize, idle: i32, intvl: i32, cnt: i32) {
        let sockets = self.sockets();
        assert_eq!(sockets.len(), count, "{sockets:?}");
        for options in sockets {
            assert_eq!((options.on, &options.timers[..3]), (true, &[idle, intvl, cnt][..]), "{options:?}");
        }
    }

    /// Ends the program, and returns its exit status.
    pub fn end(mut self) -> i32 {
        drop(self.child.stdin.take());
        self.child.wait().unwrap().code().unwrap()
    }
}

impl Drop for WaitingProgram {
    fn drop(&mut self) {
        // Closing its input ends the program, also if another process has started it.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// The kernel's values for a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    pub fd: i32,
    pub on: bool,
    /// idle, intvl, cnt and user timeout.
    pub timers: [i32; 4],
}

/// A process with a listener and connections.
pub struct Holder {
    child: Child,
    input: Option<ChildStdin>,
    output: Lines<ChildStdout>,
    pub port: u16,
}

impl Holder {
    /// Starts a command that is a holder, or executes one.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let input = child.stdin.take();
        let output = Lines::new("the holder", child.stdout.take().unwrap());
        let mut holder = Self { child, input, output, port: 0 };
        let line = holder.output.expect("`ready` and its port");
        holder.port = line.strip_prefix("ready ").unwrap_or_else(|| panic!("{line:?}")).parse().unwrap();
        holder
    }

    pub fn pid(&self) -> i32 {
        self.child.id().try_into().unwrap()
    }

    #[track_caller]
    fn command(&mut self, command: &str) -> Vec<String> {
        self.input.as_mut().unwrap().write_all(command.as_bytes()).unwrap();
        let mut lines = Vec::new();
        loop {
            match self.output.expect(&format!("its answer to {command:?}")) {
                line if line == "end" => return lines,
                line => lines.push(line),
            }
        }
    }

    /// Returns the values that the holder reads by getsockopt(2): of the listener, then of both ends of each
    /// connection.
    #[track_caller]
    pub fn look(&mut self) -> Vec<Options> {
        let options = |line: String| {
            let numbers: Vec<i32> = line.split(' ').map(|number| number.parse().unwrap()).collect();
            Options { fd: numbers[0], on: numbers[1] != 0, timers: numbers[2..6].try_into().unwrap() }
        };
        self.command("look\n").into_iter().map(options).collect()
    }

    /// Opens another connection.
    #[track_caller]
    pub fn open(&mut self) {
        self.command("open\n");
    }

    /// Asserts that all its sockets have this policy.
    #[track_caller]
    pub fn assert_all(&mut self, idle: i32, intvl: i32, cnt: i32) {
        for options in self.look() {
            assert_eq!((options.on, &options.timers[..3]), (true, &[idle, intvl, cnt][..]), "{options:?}");
        }
    }

    /// Waits until another process has ended the holder.
    pub fn wait(mut self) {
        let _ = self.child.wait();
    }

    /// Ends the holder.
    pub fn end(mut self) {
        drop(self.input.take());
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the number of connections of this network namespace according to ss(8), and the number of those whose
/// keepalive timer fires within `seconds`.
pub fn armed(seconds: f64) -> (usize, usize) {
    let sockets = established("");
    let left = |line: &str| {
        let timer = line.split_once("timer:(keepalive,")?.1.split(',').next()?;
        let minutes = timer.split_once("min").map_or(("0", timer), |(minutes, rest)| (minutes, rest));
        let rest = minutes.1.strip_suffix("sec").or(minutes.1.strip_suffix("ms")).unwrap_or("0");
        let rest: f64 = rest.parse().unwrap_or(0.0);
        let rest = if minutes.1.ends_with("ms") { rest / 1000.0 } else { rest };
        Some(minutes.0.parse::<f64>().ok()? * 60.0 + rest)
    };
    let within = |line: &&str| left(line).is_some_and(|left| left <= seconds);
    (sockets.lines().count(), sockets.lines().filter(within).count())
}
