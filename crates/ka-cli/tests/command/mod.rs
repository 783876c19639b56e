//! What the tests of the command share: ka as it is shipped, and processes that tell what the kernel says of their
//! sockets.

#![allow(dead_code, reason = "each test program uses its part of this")]

pub mod cgroups;

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::sync::OnceLock;

use ka_test::artifact::release;
use ka_test::child::{remove_ka_variables, succeed};
use ka_test::compiler::{Link, cc, compile};
use ka_test::path::{root, scratch};
use ka_test::socket::{established, keepalive_options, option};

/// ka, told nothing but what the test says.
pub fn ka() -> Command {
    bare(release().join("ka"))
}

/// A program that gets none of ka's variables from whoever runs the tests.
pub fn bare(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    remove_ka_variables(&mut command);
    command.env_remove("LD_PRELOAD").env_remove("NO_COLOR");
    command
}

/// A command as somebody who is not root.
pub fn as_nobody(command: &Command) -> Command {
    let mut wrapped = bare("setpriv");
    wrapped.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
    wrapped.arg(command.get_program()).args(command.get_args());
    wrapped
}

/// The beginning of a command for which a call fails, always or with an argument of this value: what follows is the
/// command.
pub fn refusing(call: libc::c_long, errno: i32, argument: Option<(u32, i32)>) -> Command {
    // struct seccomp_data: the number, then, from 16 on, the arguments.
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

/// A command's status, standard output and standard error.
pub fn outcome(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let code = status.code().unwrap_or_else(|| panic!("{command:?}: {status}"));
    (code, text(stdout), text(stderr))
}

/// Returns the number that follows a word in a text.
pub fn number_behind(text: &str, word: &str) -> i32 {
    let rest = text.split_once(word).unwrap_or_else(|| panic!("no {word}in {text:?}")).1;
    rest.split(|letter: char| !letter.is_ascii_digit()).next().unwrap().parse().unwrap()
}

/// A path of which everybody can run what is there: that of the repository need not be one.
pub fn public(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("ka-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    folder
}

/// Removes a folder when dropped.
pub struct CleanUp(pub PathBuf);

impl Drop for CleanUp {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The holder in C, made with these flags.
pub fn holder_with(compiler: &mut Command, flags: &[&str]) -> PathBuf {
    let source = root().join("crates/ka-cli/tests/c/holder.c");
    compile(compiler.args(flags), &source, Link::Nothing)
}

/// The holder in C.
pub fn holder() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| holder_with(&mut cc(), &[]))
}

/// The holder in C, without a loader.
pub fn static_holder() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| holder_with(&mut cc(), &["-static"]))
}

/// The holder in Go.
pub fn go_holder() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| go_program("holder", false))
}

/// A program of tests/go; with cgo it is linked to the C library, and Go makes its calls itself all the same.
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
    compile(cc().args(flags), &root().join("crates/ka-cli/tests/c/raw.c"), Link::Nothing)
}

/// What the kernel says of the TCP sockets of a process and of all that are below it, each once. It is asked from outside,
/// by a duplicate of the descriptor: pidfd_getfd(2), getsockopt(2).
pub fn outside(pid: i32) -> Vec<Told> {
    outside_but(pid, &[])
}

/// Does the same, except for some descriptors.
pub fn outside_but(pid: i32, left: &[i32]) -> Vec<Told> {
    let mut known = HashSet::new();
    let mut found = Vec::new();
    for pid in family(pid) {
        // SAFETY: numbers.
        let process = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            let Ok(link) = fs::read_link(entry.path()) else { continue };
            let fd: i32 = entry.file_name().to_str().unwrap().parse().unwrap();
            if left.contains(&fd) || !link.to_string_lossy().starts_with("socket:") || !known.insert(link) {
                continue;
            }
            // SAFETY: numbers; what it makes is ours.
            let socket = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process, fd, 0) };
            let Ok(socket) = i32::try_from(socket) else { continue };
            assert!(socket >= 0, "{pid} {fd}: {}", std::io::Error::last_os_error());
            if option(socket, libc::SOL_SOCKET, libc::SO_PROTOCOL) == Ok(libc::IPPROTO_TCP) {
                let [on, timers @ ..] = keepalive_options(socket).map(Result::unwrap);
                found.push(Told { fd, on: on != 0, timers });
            }
            // SAFETY: ours, as is the next.
            unsafe { libc::close(socket) };
        }
        // SAFETY: as above.
        unsafe { libc::close(process.try_into().unwrap()) };
    }
    found
}

/// A process and all that are below it.
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

/// A program that has said `stay`, after what else it had to say, and stays until it is let go.
pub struct Staying {
    child: Child,
    pub said: String,
}

impl Staying {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let said = lines.by_ref().take_while(|line| line != "stay").map(|line| line + "\n").collect();
        Self { child, said }
    }

    pub fn pid(&self) -> i32 {
        self.child.id().try_into().unwrap()
    }

    /// What the kernel says of its sockets, and of those of all that it has started.
    pub fn sockets(&self) -> Vec<Told> {
        outside(self.pid())
    }

    /// It has so many sockets, and all have this policy.
    #[track_caller]
    pub fn assert_all(&self, count: usize, idle: i32, intvl: i32, cnt: i32) {
        let sockets = self.sockets();
        assert_eq!(sockets.len(), count, "{sockets:?}");
        for told in sockets {
            assert_eq!((told.on, &told.timers[..3]), (true, &[idle, intvl, cnt][..]), "{told:?}");
        }
    }

    /// It ends by itself: its status.
    pub fn end(mut self) -> i32 {
        drop(self.child.stdin.take());
        self.child.wait().unwrap().code().unwrap()
    }
}

impl Drop for Staying {
    fn drop(&mut self) {
        // It ends when its input does, also where it is not our own child.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// What the kernel says of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    pub fd: i32,
    pub on: bool,
    /// idle, intvl, cnt, user timeout.
    pub timers: [i32; 4],
}

/// A process with sockets.
pub struct Holder {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    pub port: u16,
}

impl Holder {
    /// Starts a command that is a holder, or becomes one.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut holder = Self { child, input, output, port: 0 };
        let line = holder.line();
        holder.port = line.strip_prefix("ready ").unwrap_or_else(|| panic!("{line:?}")).parse().unwrap();
        holder
    }

    pub fn pid(&self) -> i32 {
        self.child.id().try_into().unwrap()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn command(&mut self, command: &str) -> Vec<String> {
        self.input.as_mut().unwrap().write_all(command.as_bytes()).unwrap();
        let mut lines = Vec::new();
        loop {
            match self.line() {
                line if line == "end" => return lines,
                line if line.is_empty() => panic!("the holder has ended"),
                line => lines.push(line),
            }
        }
    }

    /// What the kernel says of its sockets, by getsockopt(2) within it: the listener, then each connection's two ends.
    pub fn look(&mut self) -> Vec<Told> {
        let told = |line: String| {
            let numbers: Vec<i32> = line.split(' ').map(|number| number.parse().unwrap()).collect();
            Told { fd: numbers[0], on: numbers[1] != 0, timers: numbers[2..6].try_into().unwrap() }
        };
        self.command("look\n").into_iter().map(told).collect()
    }

    /// Opens one more connection.
    pub fn open(&mut self) {
        self.command("open\n");
    }

    /// All its sockets have this policy.
    #[track_caller]
    pub fn assert_all(&mut self, idle: i32, intvl: i32, cnt: i32) {
        for told in self.look() {
            assert_eq!((told.on, &told.timers[..3]), (true, &[idle, intvl, cnt][..]), "{told:?}");
        }
    }

    /// Waits until somebody has ended it.
    pub fn wait(mut self) {
        let _ = self.child.wait();
    }

    /// It ends by itself.
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

/// The connections of this network as ss(8) shows them to everybody: how many there are, and of how many a keepalive
/// timer runs with at most so many seconds left.
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
