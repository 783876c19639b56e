//! Runs one program in one way on its own machine: new network, PID and mount namespaces. There the program may be
//! root, call chroot(2), and become any user. The cell leaves nothing behind, however it ends.

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
use ka_test::process::signal_child;

use crate::kernel::{self, End};
use crate::programs::{self, Program};
use crate::way::{self, INSTALLED, Way};

/// Set inside a cell: the program, the way, and a number.
pub const CELL: &str = "KA_MATRIX_CELL";
/// The ends of the program's connections without ka, one per line.
const OWN: &str = "KA_MATRIX_OWN";
/// The folder with the files that the program's first cell has built for all cells.
const BUILT: &str = "KA_MATRIX_BUILT";
/// The working folder of the scripts, and the folder for their output.
const WORK: &str = "/run/work";
const SAID: &str = "/run/said";
/// The folder with the built files, as seen in the cell.
const BUILT_HERE: &str = "/run/built";
/// The longest time that a busy machine may need for a step.
const PATIENCE: Duration = Duration::from_secs(30);

/// The result of a cell.
#[derive(Default)]
pub struct CellResult {
    pub version: String,
    /// The output of the client, and its status.
    pub answer: String,
    /// The way in which the server ended on request.
    pub ending: String,
    /// The ends of the connections, once all were right, or at the end of the time.
    pub ends: Vec<End>,
    /// The messages of ka.
    pub said: Vec<String>,
    /// The reason why the cell did not run here.
    pub untried: Option<String>,
    /// The reason why the cell has failed.
    pub failure: Option<String>,
}

/// Runs a cell. `own` are the ends of the program's connections without ka, `built` is the folder for the built files.
pub fn run(program: &Program, way: Way, own: &[End], built: &Path) -> CellResult {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    command.args(["sh", "-c", "ip link set lo up && exec \"$@\"", "sh"]).arg(env::current_exe().unwrap());
    command.env(CELL, format!("{}/{}/{number}", program.name, way.name())).env(BUILT, built);
    let lines = |ends: &[End]| ends.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    command.env(OWN, lines(own)).stdin(Stdio::null());
    let output = command.output().unwrap_or_else(|error| panic!("unshare: {error}"));
    let mut seen = CellResult::default();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let (key, value) = line.split_once(' ').unwrap_or((line, ""));
        match key {
            "version" => value.clone_into(&mut seen.version),
            "answer" => value.clone_into(&mut seen.answer),
            "ending" => value.clone_into(&mut seen.ending),
            "end" => seen.ends.push(value.parse().unwrap()),
            "said" => seen.said.push(value.to_owned()),
            _ => panic!("unexpected output of a cell: {line}"),
        }
    }
    if !output.status.success() {
        seen.failure = Some(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    seen
}

/// Runs inside a cell, and prints the result.
pub fn run_inside(cell: &str) {
    let [name, way, number] = cell.split('/').collect::<Vec<_>>().try_into().unwrap();
    let program = programs::ALL.iter().find(|program| program.name == name).unwrap();
    let way = Way::ALL.into_iter().find(|one| one.name() == way).unwrap();
    let built = PathBuf::from(env::var_os(BUILT).unwrap());
    let own: Vec<End> = env::var(OWN).unwrap().lines().map(|line| line.parse().unwrap()).collect();
    for (name, _) in env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"KA_")) {
        // SAFETY: there are no other threads yet.
        unsafe { env::remove_var(name) };
    }
    let home = CellFolders::create(number, &built);
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
        let at_port = || ends.iter().filter(|end| end.has_port(program.port));
        at_port().any(|end| end.is_server_of(program.port)) && at_port().count() >= 2
    };
    wait("a client is connected", || {
        held.must_run();
        server.must_run();
        kernel::ends().is_some_and(|ends| connected(&ends))
    });
    if way == Way::Attach {
        // Let the client and the server open further connections.
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
    let answer = output_of("work");
    println!("answer {status} {}", answer.escape_debug());
    println!("ending {}", server.stop());
    for name in ["server.err", "held.err", "work.err"] {
        for line in output_of(name).lines().filter(|line| line.starts_with("ka: ")) {
            println!("said {line}");
        }
    }
}

/// Waits until all ends of connections are right, and returns them. While data is in flight, the kernel shows another
/// timer, so one look is not enough.
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
        // The ends must be right twice in a row.
        if same >= 2 || Instant::now() >= until {
            assert!(connected(&last), "the client is no longer connected\n{}", tail(&["server", "held"]));
            return last;
        }
        sleep(Duration::from_millis(100));
    }
}

/// The machine of a cell. Files below /run and /var are in memory, and every user can read the files of ka.
struct CellFolders {
    cgroup: PathBuf,
}

impl CellFolders {
    fn create(number: &str, built: &Path) -> Self {
        let cgroups = Path::new("/run/cgroups");
        // Save the files below /var before it is covered.
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
        // A new cgroup for `ka cgroup`, without processes of others.
        let cgroup = cgroups.join(format!("ka-matrix-{number}"));
        fs::create_dir(&cgroup).unwrap();
        fs::write(cgroup.join("cgroup.procs"), "0").unwrap();
        Self { cgroup }
    }
}

/// Kills all other processes of this machine, and removes their cgroup.
impl Drop for CellFolders {
    fn drop(&mut self) {
        // SAFETY: the call takes no pointer. This is the first process of its namespace, which the signal does not
        // reach.
        unsafe { libc::kill(-1, libc::SIGKILL) };
        let _ = fs::write("/run/cgroups/cgroup.procs", "0");
        for _ in 0..100 {
            // SAFETY: a null pointer means that no status is wanted.
            while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
            if fs::remove_dir(&self.cgroup).is_ok() {
                return;
            }
            sleep(Duration::from_millis(50));
        }
    }
}

/// Builds the files that are the same for all ways, once.
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
    let output = with_own_environment(&mut Way::None.command(script)).stdin(Stdio::null()).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    said.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().to_owned()
}

/// Sets an environment that does not depend on the machine outside.
fn with_own_environment(command: &mut Command) -> &mut Command {
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin");
    command.envs([("HOME", WORK), ("TMPDIR", WORK), ("LC_ALL", "C"), ("TZ", "UTC")])
}

/// Returns the output of a script.
fn output_of(name: &str) -> String {
    String::from_utf8_lossy(&fs::read(Path::new(SAID).join(name)).unwrap_or_default()).into_owned()
}

/// Returns the last lines of the output of scripts.
fn tail(names: &[&str]) -> String {
    let all: String = names.iter().map(|name| output_of(name) + &output_of(&format!("{name}.err"))).collect();
    let lines: Vec<_> = all.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

/// A running script. Its output goes to the files NAME and NAME.err.
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
            // A program that becomes another user may open its standard error again.
            fs::set_permissions(path, fs::Permissions::from_mode(0o666)).unwrap();
            file
        };
        command.stdout(file(name)).stderr(file(&format!("{name}.err")));
        // Nothing writes to this pipe, so a program that reads it waits, as on a terminal without input.
        let child = with_own_environment(&mut command).stdin(Stdio::piped()).spawn().unwrap();
        Self { child, name }
    }

    fn must_run(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            panic!(
                "the script {} ended too early: {}\n{}",
                self.name,
                status_text(status),
                tail(&[self.name])
            );
        }
    }

    /// Waits until the script ends.
    fn end(&mut self, patience: Duration) -> String {
        let until = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status_text(status);
            }
            if Instant::now() >= until {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return format!("not ended after {} s", patience.as_secs());
            }
            sleep(Duration::from_millis(20));
        }
    }

    /// Sends SIGTERM to the script, and waits until it ends.
    fn stop(&mut self) -> String {
        signal_child(&self.child, libc::SIGTERM);
        self.end(Duration::from_secs(15))
    }
}

fn status_text(status: ExitStatus) -> String {
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
