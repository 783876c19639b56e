//! What the tests share: the library as it is shipped, C programs against it, and the kernel's own word.
//!
//! libka is always the release build, made anew if it is not what the sources say; it is called through dlopen, as
//! any foreign program would. What a call did is read back by getsockopt(2), never through the library.

#![allow(dead_code, reason = "each test program uses its part of this")]

use std::env;
use std::ffi::{CString, OsString};
use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use libc::{c_char, c_int};

/// The repository, of whichever of its packages the test is.
pub fn root() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.ancestors().find(|folder| folder.join("Cargo.lock").exists()).unwrap()
}

/// Cargo's target folder.
pub fn target() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap()
}

/// The folder of the release build, with libka.so, libka.a and the link that has the SONAME.
pub fn release() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        cargo_build(&["--workspace".as_ref()]);
        target().join("release")
    })
}

/// The SONAME that libka.so has.
pub fn soname() -> String {
    let dynamic =
        stdout(Command::new("readelf").arg("-d").arg(release().join("libka.so")).env("LC_ALL", "C"));
    dynamic.split_once("soname: [").unwrap().1.split_once(']').unwrap().0.to_owned()
}

/// The release build before stripping: a folder whose libka.so still has its symbols.
pub fn unstripped() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let folder = target().join("unstripped");
        let mut args: Vec<&std::ffi::OsStr> = vec!["--target-dir".as_ref(), folder.as_os_str()];
        args.extend(["--package", "ka", "--package", "ka-preload"].map(std::ffi::OsStr::new));
        for config in [
            "profile.release.strip=false",
            "profile.release.package.ka-core.strip=false",
            "profile.release.package.ka-preload.strip=false",
        ] {
            args.extend(["--config".as_ref(), std::ffi::OsStr::new(config)]);
        }
        cargo_build(&args);
        // Cargo's folder of the processor that it was told to build for.
        folder.join(env::var_os("CARGO_BUILD_TARGET").unwrap_or_default()).join("release")
    })
}

fn cargo_build(args: &[&std::ffi::OsStr]) {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    succeed(command.current_dir(root()).args(["build", "--release", "--quiet"]).args(args));
}

/// Runs a command that must succeed, and gives what it printed.
pub fn succeed(command: &mut Command) -> Output {
    // Not as Debug has it, with the whole environment.
    let said =
        [command.get_program()].into_iter().chain(command.get_args()).collect::<Vec<_>>().join(" ".as_ref());
    let said = said.to_string_lossy().into_owned();
    let output = command.output().unwrap_or_else(|error| panic!("{said}: {error}"));
    assert!(
        output.status.success(),
        "{said}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// What a command that must succeed printed on its standard output.
pub fn stdout(command: &mut Command) -> String {
    String::from_utf8(succeed(command).stdout).unwrap()
}

/// How a C program gets the library.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Link {
    /// libka.so, found at run time through an rpath.
    Shared,
    /// libka.a, with no other flag.
    Static,
    /// Not at all.
    Nothing,
}

pub const LINKS: [Link; 2] = [Link::Shared, Link::Static];

/// The C compiler that the cc crate finds, which honours CC and CFLAGS.
pub fn cc() -> Command {
    let triple = format!("{}-unknown-linux-gnu", env::consts::ARCH);
    let mut build = cc::Build::new();
    build.target(&triple).host(&triple).opt_level(1).debug(true).cargo_metadata(false);
    let mut command = build.get_compiler().to_command();
    command.args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-pthread"]);
    command
}

/// The shim.
pub fn shim() -> PathBuf {
    release().join("libka_preload.so")
}

/// What is loaded of a library; how a linker pads the file between that is the linker's.
pub fn loaded_size(library: &Path) -> u64 {
    let headers = stdout(Command::new("readelf").arg("-lW").arg(library));
    let sizes = headers.lines().filter(|line| line.trim_start().starts_with("LOAD")).map(|line| {
        let size = line.split_whitespace().nth(4).unwrap();
        u64::from_str_radix(size.strip_prefix("0x").unwrap(), 16).unwrap()
    });
    sizes.sum()
}

/// A command whose program runs under the shim, and is told nothing but what the test says.
pub fn preloaded(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env("LD_PRELOAD", shim());
    for (name, _) in env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"KA_")) {
        command.env_remove(name);
    }
    command
}

/// A program made of tests/c/NAME.c.
pub fn program(name: &str, link: Link) -> PathBuf {
    compile(&mut cc(), &root().join("tests/c").join(name).with_extension("c"), link)
}

/// A program made of one source by this compiler.
pub fn compile(compiler: &mut Command, source: &Path, link: Link) -> PathBuf {
    let output = scratch(source.file_stem().unwrap().to_str().unwrap());
    compiler.arg("-I").arg(root().join("include")).arg("-o").arg(&output).arg(source);
    match link {
        Link::Shared => {
            let mut rpath = OsString::from("-Wl,-rpath,");
            rpath.push(release());
            compiler.arg("-L").arg(release()).arg("-lka").arg(rpath);
        }
        Link::Static => {
            compiler.arg(release().join("libka.a"));
        }
        Link::Nothing => {}
    }
    succeed(compiler);
    output
}

/// Builds tests/c/allow.c: it runs a program under a seccomp filter that allows only these system calls. Calls that
/// this architecture does not have are left out.
pub fn allowing<'a>(calls: impl IntoIterator<Item = &'a str>) -> PathBuf {
    let table = scratch("calls").with_extension("inc");
    let lines = calls.into_iter().map(|call| format!("#ifdef __NR_{call}\n__NR_{call},\n#endif\n"));
    fs::write(&table, lines.collect::<String>()).unwrap();
    let define = format!("-DCALLS=\"{}\"", table.display());
    compile(cc().arg(define), &root().join("tests/c/allow.c"), Link::Nothing)
}

/// include/ka.h, each declaration in one line.
pub fn header() -> String {
    one_line_each(&fs::read_to_string(root().join("include/ka.h")).unwrap())
}

/// A header with each declaration in one line.
pub fn one_line_each(header: &str) -> String {
    let mut lines = String::new();
    for line in header.lines() {
        let goes_on = lines.ends_with(',') && line.starts_with("    ");
        lines += if goes_on { " " } else { "\n" };
        lines += if goes_on { line.trim_start() } else { line };
    }
    lines
}

/// The comment that stands before a function in include/ka.h.
pub fn comment(name: &str) -> String {
    let header = header();
    let lines: Vec<_> = header
        .lines()
        .take_while(|line| {
            line.starts_with(' ') || !line.contains(&format!("{name}(")) || !line.ends_with(");")
        })
        .collect();
    let start = lines.iter().rposition(|line| *line == "/**").unwrap();
    lines[start..].join("\n")
}

/// A program of c-examples, built.
pub fn example(name: &str) -> PathBuf {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| {
        release();
        succeed(Command::new("make").arg("-C").arg(root().join("c-examples")));
    });
    root().join("c-examples").join(name)
}

/// What it said on its standard error.
pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A running server of the examples, ended when dropped.
pub struct Server {
    pub child: Child,
    pub lines: std::io::Lines<BufReader<ChildStdout>>,
    pub port: u16,
}

impl Server {
    /// Starts it, and gives what it said until it listened.
    pub fn spawn(command: &mut Command) -> (Self, Vec<String>) {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut said = vec![];
        let port = loop {
            let line = lines.next().unwrap().unwrap();
            if let Some(port) = line.strip_prefix("listening on port ") {
                break port.parse().unwrap();
            }
            said.push(line);
        };
        (Self { child, lines, port }, said)
    }

    /// The next line that it says.
    pub fn line(&mut self) -> String {
        self.lines.next().unwrap().unwrap()
    }

    /// A connection to it.
    pub fn connect(&self) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.port)).unwrap()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: a signal to our own child, which was not waited for.
        unsafe { libc::kill(self.child.id().try_into().unwrap(), signal) };
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A path of its own for a file that a test makes. Cargo's target folder has it, and cleans it up.
pub fn scratch(name: &str) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    // The number of a process is not its own alone: on a machine of its own a test has a low one every time.
    static STARTED: OnceLock<u128> = OnceLock::new();
    let started = STARTED.get_or_init(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos());
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(env!("CARGO_CRATE_NAME"));
    fs::create_dir_all(&folder).unwrap();
    folder.join(format!(
        "{name}-{}-{started:x}-{}",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    ))
}

/// Runs the test again, alone, in a network namespace of its own, and says whether this is that run.
pub fn in_a_network_of_its_own(test: &str) -> bool {
    alone(test, &["--net"])
}

/// The same, and the only processes that there are: what speaks of all processes must not reach others, and all of
/// them end with the test.
pub fn on_a_machine_of_its_own(test: &str) -> bool {
    alone(test, &["--net", "--pid", "--fork", "--mount-proc"])
}

/// Runs the test again, alone, in these namespaces of unshare(1), and says whether this is that run.
///
/// An ordinary user gets a user namespace too, and has all capabilities in it. Not as its root: some tools, tcpdump for
/// one, would try to be somebody else then.
pub fn alone(test: &str, namespaces: &[&str]) -> bool {
    const INSIDE: &str = "KA_TEST_NETWORK";
    if env::var_os(INSIDE).is_some() {
        return true;
    }
    let mut command = Command::new("unshare");
    command.args(user_namespace()).args(namespaces).args([
        "sh",
        "-c",
        "ip link set lo up && exec \"$@\"",
        "sh",
    ]);
    command.arg(env::current_exe().unwrap()).args([test, "--exact", "--nocapture"]).env(INSIDE, "1");
    let output = succeed(&mut command);
    // What it said past its test runner goes past this one's.
    let _ = io::stderr().write_all(&output.stderr);
    let output = String::from_utf8_lossy(&output.stdout);
    assert!(output.contains("1 passed"), "{test} did not run: {output}");
    false
}

/// Runs a shell command in a copy of /etc of its own.
pub fn with_own_etc(script: &str) -> Output {
    let etc = scratch("etc");
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c"]);
    command.arg(
        "cp -a /etc \"$etc\" && rm -f \"$etc/ka.conf\" && mount --bind \"$etc\" /etc && eval \"$script\"",
    );
    let output = command.env("etc", &etc).env("script", script).output().unwrap();
    fs::remove_dir_all(etc).unwrap();
    output
}

/// What unshare(1) must be told first, to make namespaces: nothing where this is root.
pub fn user_namespace() -> &'static [&'static str] {
    if is_root() { &[] } else { &["--user", "--map-current-user", "--keep-caps"] }
}

/// A program that runs until the test ends.
pub struct Running(pub Child);

impl Running {
    /// Starts it without input, and without its output.
    pub fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A configuration of nginx with one server, which is told this: its path, in a folder of its own that is the root.
pub fn nginx(server: &str) -> PathBuf {
    let folder = scratch("nginx");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    let own = folder.display();
    let user = if is_root() { "user root;" } else { "" };
    let paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {own}/{name}; "));
    let text = format!(
        "daemon off; {user} pid {own}/pid; error_log {own}/error; events {{}} http {{ access_log off; {} \
         server {{ root {own}; {server} }} }}",
        paths.concat()
    );
    let path = folder.join("conf");
    fs::write(&path, text).unwrap();
    path
}

/// Waits until somebody listens on a port.
pub fn listening(port: u16) {
    eventually(&format!("somebody listens on port {port}"), || {
        TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
}

/// Waits until something is so, for as long as a busy machine may need.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < end, "not in 20 s: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Whether this is root, who needs no user namespace to be it.
pub fn is_root() -> bool {
    // SAFETY: geteuid takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// What the kernel lacks for eBPF at sockets, or does not let this root do, asked without ka.
pub fn lacks_bpf() -> Option<String> {
    /// The beginning of `union bpf_attr` for a map: an array of one `int`.
    #[repr(C)]
    struct Map([u32; 4]);
    const SYS_ADMIN: u32 = 21;
    let mut map = Map([2, 4, 4, 1]);
    // SAFETY: the kernel reads as many bytes as it is told that there are; what it makes is closed with the process.
    if unsafe { libc::syscall(libc::SYS_bpf, 0, &raw mut map, size_of::<Map>()) } < 0 {
        return Some(format!("bpf(2): {}", std::io::Error::last_os_error()));
    }
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
    if u64::from_str_radix(effective, 16).unwrap() & 1 << SYS_ADMIN == 0 {
        return Some("root has no CAP_SYS_ADMIN here".to_owned());
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    if (numbers.next().unwrap(), numbers.next().unwrap()) < (6, 1) {
        return Some(format!("Linux {} is older than 6.1", release.trim()));
    }
    let has_types = Path::new("/sys/kernel/btf/vmlinux").exists();
    (!has_types).then(|| "this kernel does not describe its types (BTF)".to_owned())
}

/// The kernel's version without what those who built it put behind: `6.18.44` of `6.18.44-cloud-amd64`.
pub fn kernel() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    release.trim().split('-').next().unwrap().to_owned()
}

/// Writes a sysctl of this network namespace.
pub fn sysctl(name: &str, value: &str) {
    fs::write(Path::new("/proc/sys/net/ipv4").join(name), value).unwrap();
}

macro_rules! libka {
    ($(fn $name:ident($($type:ty),*) $(-> $result:ty)?;)*) => {
        /// The functions of the shipped libka.so.
        pub struct Libka { $(pub $name: unsafe extern "C" fn($($type),*) $(-> $result)?,)* }

        impl Libka {
            fn open() -> Self {
                let path = CString::new(release().join("libka.so").into_os_string().into_encoded_bytes()).unwrap();
                // SAFETY: the library has no constructors, and is never closed.
                let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
                assert!(!library.is_null(), "libka.so does not load");
                Self { $($name: {
                    let name = CString::new(stringify!($name)).unwrap();
                    // SAFETY: the type is that of include/ka.h, which the tests in C are compiled against.
                    unsafe {
                        let symbol = libc::dlsym(library, name.as_ptr());
                        assert!(!symbol.is_null(), "libka.so has no {}", stringify!($name));
                        std::mem::transmute::<*mut libc::c_void, unsafe extern "C" fn($($type),*) $(-> $result)?>(symbol)
                    }
                },)* }
            }
        }

        /// Their names: what libka.so exports.
        pub const EXPORTS: &[&str] = &[$(stringify!($name)),*];
    };
}

libka! {
    fn ka_apply(c_int, *const Config) -> c_int;
    fn ka_beat_client(*const u8, *mut u64) -> c_int;
    fn ka_beat_nonce(*mut u8) -> c_int;
    fn ka_beat_sign(*const u8, usize, *const u8, *const Beat, *mut u8) -> c_int;
    fn ka_beat_verify(*const u8, usize, *const u8, u64, *const u8, *mut Beat) -> c_int;
    fn ka_defaults(*mut Config) -> c_int;
    fn ka_detect_time(*const Config, *mut u64, *mut u64) -> c_int;
    fn ka_disable(c_int) -> c_int;
    fn ka_enable(c_int, c_int, c_int, c_int) -> c_int;
    fn ka_format(*const Config, *mut c_char, usize) -> c_int;
    fn ka_get_cnt(c_int, *mut c_int) -> c_int;
    fn ka_get_idle(c_int, *mut c_int) -> c_int;
    fn ka_get_intvl(c_int, *mut c_int) -> c_int;
    fn ka_get_status(c_int, *mut Status) -> c_int;
    fn ka_get_user_timeout(c_int, *mut c_int) -> c_int;
    fn ka_is_enabled(c_int) -> c_int;
    fn ka_parse(*const c_char, *mut Config) -> c_int;
    fn ka_plan_detect(u32, *mut Config) -> c_int;
    fn ka_plan_path(u32, *mut Config) -> c_int;
    fn ka_plan_preset(*const c_char, *mut Config) -> c_int;
    fn ka_query(c_int, *mut Config) -> c_int;
    fn ka_reaper_expired(*mut Reaper, u64, *mut c_int, usize) -> c_int;
    fn ka_reaper_forget(*mut Reaper, c_int) -> c_int;
    fn ka_reaper_free(*mut Reaper);
    fn ka_reaper_len(*const Reaper) -> usize;
    fn ka_reaper_new(u32) -> *mut Reaper;
    fn ka_reaper_next(*const Reaper, u64) -> c_int;
    fn ka_reaper_touch(*mut Reaper, c_int, u64) -> c_int;
    fn ka_set_user_timeout(c_int, c_int) -> c_int;
    fn ka_version() -> *const c_char;
    fn ka_version_number() -> u32;
}

/// The library, loaded once.
pub fn libka() -> &'static Libka {
    static LIBRARY: OnceLock<Libka> = OnceLock::new();
    LIBRARY.get_or_init(Libka::open)
}

pub const KEEP: i32 = -1;
pub const AUTO: i32 = -2;

/// struct ka_config: size, enabled, idle, intvl, cnt, `user_timeout`. A test in C compares the layouts.
pub type Config = [i32; 6];
/// `KA_CONFIG_INIT`
pub const CONFIG_INIT: Config = [24, KEEP, KEEP, KEEP, KEEP, KEEP];
/// struct ka_status: size, state, probes, retransmits, unacked, `last_ack_ms`, `last_recv_ms`, `last_send_ms`, `rtt_us`.
pub type Status = [u32; 9];
/// `KA_STATUS_INIT`
pub const STATUS_INIT: Status = [36, 0, 0, 0, 0, 0, 0, 0, 0];

/// struct ka_beat: client, sequence.
pub type Beat = [u64; 2];
/// struct ka_reaper: what is in it, only the library knows.
pub type Reaper = libc::c_void;

/// A config with everything named.
pub const fn config(enabled: i32, idle: i32, intvl: i32, cnt: i32, user_timeout: i32) -> Config {
    [24, enabled, idle, intvl, cnt, user_timeout]
}

/// Calls the library and gives its result, or its errno. errno must be left alone on success, and set on failure.
pub fn call(function: impl FnOnce(&Libka) -> c_int) -> Result<c_int, c_int> {
    const UNTOUCHED: c_int = 9999;
    let library = libka();
    // SAFETY: this thread's errno.
    let errno = unsafe { &mut *libc::__errno_location() };
    *errno = UNTOUCHED;
    let result = function(library);
    let errno = *errno;
    if result == -1 {
        assert_ne!(errno, UNTOUCHED, "a call failed without setting errno");
        Err(errno)
    } else {
        assert_eq!(errno, UNTOUCHED, "a call that succeeded changed errno");
        Ok(result)
    }
}

pub fn enable(fd: RawFd, idle: c_int, intvl: c_int, cnt: c_int) -> Result<c_int, c_int> {
    // SAFETY: takes no pointer.
    call(|ka| unsafe { (ka.ka_enable)(fd, idle, intvl, cnt) })
}

pub fn apply(fd: RawFd, config: &Config) -> Result<c_int, c_int> {
    // SAFETY: the config has the size that it says.
    call(|ka| unsafe { (ka.ka_apply)(fd, config) })
}

/// What the kernel says of an option, in its own words: by getsockopt(2), not through the library.
pub fn option(fd: RawFd, level: c_int, name: c_int) -> Result<c_int, c_int> {
    let (mut value, mut size) = (0, 4);
    // SAFETY: `value` has `size` bytes.
    match unsafe { libc::getsockopt(fd, level, name, (&raw mut value).cast(), &raw mut size) } {
        0 => Ok(value),
        _ => Err(io::Error::last_os_error().raw_os_error().unwrap()),
    }
}

/// Sets an option by setsockopt(2).
pub fn set_option(fd: RawFd, level: c_int, name: c_int, value: c_int) {
    // SAFETY: `value` has the 4 bytes.
    let result = unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), 4) };
    assert_eq!(result, 0, "setsockopt {level} {name} {value}: {}", io::Error::last_os_error());
}

/// `SO_KEEPALIVE`, idle, intvl, cnt and user timeout, each as the kernel says, errors too.
pub fn five(fd: RawFd) -> [Result<c_int, c_int>; 5] {
    [
        option(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE),
        option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE),
        option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL),
        option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPCNT),
        option(fd, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
    ]
}

/// socket(2).
pub fn socket(domain: c_int, kind: c_int, protocol: c_int) -> io::Result<OwnedFd> {
    // SAFETY: takes no pointer.
    match unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: it is new and ours.
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
    }
}

/// A Python that has a module: the one on the path, or Debian's.
pub fn python_with(module: &str) -> &'static str {
    let has = |python: &str| {
        let import = Command::new(python).args(["-c", &format!("import {module}")]).output();
        import.is_ok_and(|output| output.status.success())
    };
    if has("python3") { "python3" } else { "/usr/bin/python3" }
}

/// Says what is not tried here and why.
pub fn skip(why: &str) {
    say(&format!("SKIPPED: {why}"));
}

/// Says something past the test runner, which would keep it to itself.
pub fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Whether this machine has IPv6 on its loopback. Says so where not: what needs it is then not tried.
pub fn has_ipv6() -> bool {
    let has = std::net::TcpListener::bind("[::1]:0").is_ok();
    if !has {
        skip("no IPv6 here");
    }
    has
}

/// Whether this kernel makes MPTCP sockets. Says so where not: what needs it is then not tried.
pub fn has_mptcp() -> bool {
    let has = socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP).is_ok();
    if !has {
        skip("no MPTCP here");
    }
    has
}

/// A TCP socket that is nothing yet.
pub fn fresh() -> OwnedFd {
    socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap()
}

/// The number of a descriptor that is not open: the kernel hands out the lowest that is free.
pub const CLOSED: RawFd = 999;
