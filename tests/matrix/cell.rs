//! One program in one way, on a machine of its own: namespaces for networks, processes and mounts, in which it may be
//! root, chroot, and become whom it likes. However it ends, nothing of it is left.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use ka_test::child::succeed;
use ka_test::path::target;

use crate::kernel::{self, End};
use crate::programs::{self, Program};
use crate::way::{self, INSTALLED, Way};

/// Says inside which cell this is: the program, the way, a number.
pub const CELL: &str = "KA_MATRIX_CELL";
/// The ends of the program's connections without ka, a line each.
const OWN: &str = "KA_MATRIX_OWN";
/// What the program's first cell has built for all of them.
const BUILT: &str = "KA_MATRIX_BUILT";
/// Where the scripts are run, and where what they say goes.
const WORK: &str = "/run/work";
const SAID: &str = "/run/said";
/// Where the cell finds what was built, wherever that is.
const BUILT_HERE: &str = "/run/built";
/// As long as a busy machine may need for a thing.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a cell has seen.
#[derive(Default)]
pub struct Seen {
    pub version: String,
    /// What the client said and how it ended.
    pub answer: String,
    /// How the server ended when it was asked to.
    pub ending: String,
    /// The ends of the connections, when all were as they should be, or at last.
    pub ends: Vec<End>,
    /// What ka had to say.
    pub said: Vec<String>,
    /// Why it was not tried here.
    pub untried: Option<String>,
    /// Why it did not come to an end.
    pub failure: Option<String>,
}

/// Runs a cell, given what the program did without ka and a folder for what is built once.
pub fn run(program: &Program, way: Way, own: &[End], built: &Path) -> Seen {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    command.args(["sh", "-c", "ip link set lo up && exec \"$@\"", "sh"]).arg(env::current_exe().unwrap());
    command.env(CELL, format!("{}/{}/{number}", program.name, way.name())).env(BUILT, built);
    let lines = |ends: &[End]| ends.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    command.env(OWN, lines(own)).stdin(Stdio::null());
    let output = command.output().unwrap_or_else(|error| panic!("unshare: {error}"));
    let mut seen = Seen::default();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let (key, value) = line.split_once(' ').unwrap_or((line, ""));
        match key {
            "version" => value.clone_into(&mut seen.version),
            "answer" => value.clone_into(&mut seen.answer),
            "ending" => value.clone_into(&mut seen.ending),
            "end" => seen.ends.push(value.parse().unwrap()),
            "said" => seen.said.push(value.to_owned()),
            _ => panic!("a cell says {line}"),
        }
    }
    if !output.status.success() {
        seen.failure = Some(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    seen
}

/// Inside: does it, and says what was seen.
pub fn be(cell: &str) {
    let [name, way, number] = cell.split('/').collect::<Vec<_>>().try_into().unwrap();
    let program = programs::ALL.iter().find(|program| program.name == name).unwrap();
    let way = Way::ALL.into_iter().find(|one| one.name() == way).unwrap();
    let built = PathBuf::from(env::var_os(BUILT).unwrap());
    let own: Vec<End> = env::var(OWN).unwrap().lines().map(|line| line.parse().unwrap()).collect();
    for (name, _) in env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"KA_")) {
        // SAFETY: there are no other threads yet.
        unsafe { env::remove_var(name) };
    }
    let home = Home::furnish(number, &built);
    env::set_current_dir(WORK).unwrap();
    if way == Way::None {
        build(program);
        println!("version {}", first_line(program.version));
    } else {
        copy(BUILT_HERE, WORK);
    }
    if way == Way::Cgroup {
        way::attach_cgroup(&home.cgroup);
    }

    let mut server = Script::start(way, program.server, "server");
    wait("the server listens", || {
        server.must_run();
        kernel::is_listening(program.port)
    });
    let mut held = Script::start(way, program.held, "held");
    let connected = |ends: &[End]| {
        let at_port = || ends.iter().filter(|end| end.is_at(program.port));
        at_port().any(|end| end.is_server_of(program.port)) && at_port().count() >= 2
    };
    wait("a client is connected", || {
        held.must_run();
        server.must_run();
        kernel::ends().is_some_and(|ends| connected(&ends))
    });
    if way == Way::Attach {
        // A moment for what else the two of them open.
        sleep(Duration::from_millis(300));
        for line in way::attach_all().lines() {
            println!("said {line}");
        }
    }
    let ends = settle(way, &own, connected);
    for end in ends {
        println!("end {end}");
    }
    held.stop();

    let mut client = Script::start(way, program.work, "work");
    drop(client.child.stdin.take());
    let status = client.end(PATIENCE);
    let answer = said("work");
    println!("answer {status} {}", answer.escape_debug());
    println!("ending {}", server.stop());
    for name in ["server.err", "held.err", "work.err"] {
        for line in said(name).lines().filter(|line| line.starts_with("ka: ")) {
            println!("said {line}");
        }
    }
}

/// Waits until all ends of connections are as they should be, which while data is on its way they cannot show, and
/// gives what there was at last.
fn settle(way: Way, own: &[End], connected: impl Fn(&[End]) -> bool) -> Vec<End> {
    let until = Instant::now() + Duration::from_secs(8);
    let mut last = vec![];
    let mut same = 0;
    loop {
        let ends = kernel::ends();
        if let Some(ends) = ends {
            let is_right = |end: &End| way == Way::None || end.is_armed() && way.lacks(end, own).is_none();
            let right = connected(&ends) && ends.iter().all(is_right);
            same = if right { same + 1 } else { 0 };
            last = ends;
        }
        // Not a chance look: twice in a row.
        if same >= 2 || Instant::now() >= until {
            assert!(connected(&last), "the client is connected no more\n{}", tail(&["server", "held"]));
            return last;
        }
        sleep(Duration::from_millis(100));
    }
}

/// A machine of one's own: nothing is left of what is written below /run and /var, and all can read what ka is.
struct Home {
    cgroup: PathBuf,
}

impl Home {
    fn furnish(number: &str, built: &Path) -> Self {
        let cgroups = Path::new("/run/cgroups");
        // What lies below /var is there until that is covered.
        let mounts = r#"mount -t tmpfs none /run
        mkdir /run/cgroups "$HERE" "$INSTALLED" "$SAID"
        mkdir -m 1777 "$WORK" # those whom servers become may write there, as in /tmp
        mount -t cgroup2 none /run/cgroups
        mount -t bpf none /sys/fs/bpf
        mount --bind "$BUILT" "$HERE"
        cp "$RELEASE/ka" "$RELEASE/libka_preload.so" "$INSTALLED"
        mount -t tmpfs none /var
        mkdir -p /var/log /var/lib /var/tmp
        ln -s /run /var/run"#;
        let mut shell = Command::new("sh");
        shell.args(["-euc", mounts]).env("BUILT", built).env("RELEASE", target().join("release"));
        shell.envs([("HERE", BUILT_HERE), ("INSTALLED", INSTALLED), ("SAID", SAID), ("WORK", WORK)]);
        succeed(&mut shell);
        // A cgroup of its own, for `ka cgroup` to have, and with no other's processes in it.
        let cgroup = cgroups.join(format!("ka-matrix-{number}"));
        fs::create_dir(&cgroup).unwrap();
        fs::write(cgroup.join("cgroup.procs"), "0").unwrap();
        Self { cgroup }
    }
}

/// Ends all other processes of this machine, and removes the cgroup that they were in.
impl Drop for Home {
    fn drop(&mut self) {
        // SAFETY: takes numbers. This is the first process of its namespace, and the only one that the signal spares.
        unsafe { libc::kill(-1, libc::SIGKILL) };
        let _ = fs::write("/run/cgroups/cgroup.procs", "0");
        for _ in 0..100 {
            // SAFETY: the status is not asked for.
            while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
            if fs::remove_dir(&self.cgroup).is_ok() {
                return;
            }
            sleep(Duration::from_millis(50));
        }
    }
}

/// Does once what takes long and is the same for all ways.
fn build(program: &Program) {
    let mut script = Script::start(Way::None, program.build, "build");
    let status = script.end(Duration::from_secs(300));
    assert!(status == "status 0", "building: {status}\n{}", tail(&["build"]));
    copy(WORK, BUILT_HERE);
}

fn copy(from: impl AsRef<OsStr>, to: impl AsRef<OsStr>) {
    succeed(Command::new("cp").arg("-aT").arg(from).arg(to));
}

fn first_line(script: &str) -> String {
    let output = at_home(&mut Way::None.command(script)).stdin(Stdio::null()).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    said.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().to_owned()
}

/// Whatever the machine outside is called and speaks.
fn at_home(command: &mut Command) -> &mut Command {
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin");
    command.envs([("HOME", WORK), ("TMPDIR", WORK), ("LC_ALL", "C"), ("TZ", "UTC")])
}

/// What a script said.
fn said(name: &str) -> String {
    String::from_utf8_lossy(&fs::read(Path::new(SAID).join(name)).unwrap_or_default()).into_owned()
}

/// The end of what scripts said.
fn tail(names: &[&str]) -> String {
    let all: String = names.iter().map(|name| said(name) + &said(&format!("{name}.err"))).collect();
    let lines: Vec<_> = all.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

/// A script that runs. What it says goes to a file of its name, and NAME.err.
struct Script {
    child: Child,
    name: &'static str,
}

impl Script {
    fn start(way: Way, script: &str, name: &'static str) -> Self {
        let mut command = way.command(script);
        let file = |name: &str| {
            let path = Path::new(SAID).join(name);
            let file = File::create(&path).unwrap();
            // Who becomes somebody else may open its own standard error again.
            fs::set_permissions(path, fs::Permissions::from_mode(0o666)).unwrap();
            file
        };
        command.stdout(file(name)).stderr(file(&format!("{name}.err")));
        // Nobody writes to it. Who reads it waits, as at a terminal where nothing is typed.
        let child = at_home(&mut command).stdin(Stdio::piped()).spawn().unwrap();
        Self { child, name }
    }

    fn must_run(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            panic!("the script {} ended too early: {}\n{}", self.name, told(status), tail(&[self.name]));
        }
    }

    /// Waits for its end.
    fn end(&mut self, patience: Duration) -> String {
        let until = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return told(status);
            }
            if Instant::now() >= until {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return format!("not ended after {} s", patience.as_secs());
            }
            sleep(Duration::from_millis(20));
        }
    }

    /// Asks it to end.
    fn stop(&mut self) -> String {
        // SAFETY: a signal to our own child, which was not waited for.
        unsafe { libc::kill(self.child.id().try_into().unwrap(), libc::SIGTERM) };
        self.end(Duration::from_secs(15))
    }
}

fn told(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("status {code}"),
        (_, Some(signal)) => format!("signal {signal}"),
        _ => status.to_string(),
    }
}

fn wait(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(
            Instant::now() < until,
            "not in {} s: {what}\n{}",
            PATIENCE.as_secs(),
            tail(&["server", "held"])
        );
        sleep(Duration::from_millis(50));
    }
}
