//! LD_PRELOAD: the dynamic loader puts libka_preload.so into the program, which does the rest. ka-preload(7)

use std::convert::Infallible;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ka_core::{CONF, Orders, Timer, UserTimeout, Values, Variable, skips};

use super::{Launch, Reach, Way};
use crate::elf::{Elf, Libc};
use crate::failure::{Failure, NOT_EXECUTABLE, NOT_FOUND, OUR_OWN};
use crate::program::Program;
use crate::sys;

pub(super) struct Preload;

const SHIM: &str = "libka_preload.so";

/// Where packages put it, unless they say otherwise when they build.
const PRIVATE_FOLDER: &str = match option_env!("KA_LIBDIR") {
    Some(folder) => folder,
    None => "/usr/lib/ka",
};

impl Way for Preload {
    fn name(&self) -> &'static str {
        "preload"
    }

    fn reach(&self, launch: &Launch<'_>) -> Reach {
        let shim = match shim() {
            Ok(shim) => shim,
            Err(why) => return no(why, "KA_PRELOAD=/path/to/libka_preload.so"),
        };
        match obstacle(launch.program, shim).or_else(|| is_ordered_off(launch)) {
            Some((why, instead)) => no(why, instead),
            None => Reach::Yes(shim.path.display().to_string()),
        }
    }

    fn start(&self, launch: &Launch<'_>) -> Result<Infallible, Failure> {
        let file = conf_text();
        let mut environment = Environment(sys::environment());
        environment.say(launch, &file);
        let shim = shim().and_then(|shim| {
            plain_path(&shim.path).map_err(|error| {
                let path = shim.path.display();
                format!("{path}: the loader takes no path with blanks, colons or $, and there is no place for a link: {error}")
            })
        });
        match shim {
            Ok(shim) => {
                environment.append_preload(&shim);
                if launch.verbose {
                    let orders = environment.orders(&file);
                    let mode = mode_name(orders.mode);
                    let _ = writeln!(
                        io::stderr(),
                        "ka: via preload: {}, {}, mode {mode}",
                        shim.display(),
                        orders.policy
                    );
                }
            }
            Err(_) if launch.best_effort => {}
            Err(why) => return Err(Failure::new(format_args!("run: {why}")).with_status(OUR_OWN)),
        }
        let program = launch.program;
        let mut error = sys::exec(&program.path, launch.arguments, &environment.0);
        if program.is_plain_text && error.raw_os_error() == Some(libc::ENOEXEC) {
            // The shell runs what the kernel does not know, as execvp(3) has it.
            let script = program.path.clone().into_os_string();
            let rest = launch.arguments.iter().skip(1).cloned();
            let arguments: Vec<_> = ["/bin/sh".into(), script].into_iter().chain(rest).collect();
            error = sys::exec(&program.executable, &arguments, &environment.0);
        }
        let status = if error.raw_os_error() == Some(libc::ENOENT) { NOT_FOUND } else { NOT_EXECUTABLE };
        Err(Failure::new(format_args!("{}: {error}", program.path.display())).with_status(status))
    }
}

fn no(why: impl Into<String>, instead: impl Into<String>) -> Reach {
    Reach::No { why: why.into(), instead: instead.into() }
}

/// Why the shim does not reach a program, and what does.
fn obstacle(program: &Program, shim: &Shim) -> Option<(String, String)> {
    const FOLLOW: &str = "ka attach --follow PID, once it runs (ka run --best-effort starts it without)";
    let path = program.executable.display();
    let follow = |why: String| Some((why, FOLLOW.to_owned()));
    if program.drops_environment {
        return follow(format!("{}: its #! line drops LD_PRELOAD with env(1)", program.path.display()));
    }
    if let Some(secure) = program.secure {
        let why = format!("{path}: {secure}, so the loader ignores LD_PRELOAD");
        let name = program.name().to_string_lossy().into_owned();
        let instead = match name.as_str() {
            "sudo" | "doas" | "su" | "pkexec" | "runuser" => {
                format!("ka behind it: {name} ka run -- PROGRAM")
            }
            _ => format!("/etc/ld.so.preload, as in ka-preload(7); or {FOLLOW}"),
        };
        return Some((why, instead));
    }
    let Some(elf) = &program.elf else {
        return follow(format!("{path}: it is no ELF program, or may not be read"));
    };
    let is_static = elf.loader.is_none() && !elf.is_loader();
    if elf.is_go {
        let how = if is_static { "it is static, and" } else { "it" };
        follow(format!("{path}: {how} was made by Go, whose programs make their system calls themselves"))
    } else if is_static {
        let how = if elf.is_position_independent { "static-pie" } else { "static" };
        follow(format!("{path}: it is {how}, so no loader reads LD_PRELOAD"))
    } else if !elf.fits(&shim.elf) {
        follow(format!(
            "{path}: it is for {}, and {} is for {}",
            elf.machine_name(),
            shim.path.display(),
            shim.elf.machine_name()
        ))
    } else if elf.libc() == Some(Libc::Unknown) {
        let loader = elf.loader.as_deref().unwrap_or_default().escape_ascii();
        follow(format!("{path}: its loader {loader} is neither glibc's nor musl's"))
    } else {
        None
    }
}

/// Why what was ordered of programs elsewhere leaves this one alone.
fn is_ordered_off(launch: &Launch<'_>) -> Option<(String, String)> {
    let file = conf_text();
    let mut environment = Environment(sys::environment());
    environment.say(launch, &file);
    let orders = environment.orders(&file);
    if orders.policy.enabled() != Some(true) {
        return Some((
            "KA_POLICY=off, in the environment or /etc/ka.conf, says to do nothing".to_owned(),
            "a policy: ka run -p 60,10,6".to_owned(),
        ));
    }
    let called = launch.arguments.first().map(|name| Path::new(name).file_name().unwrap_or_default());
    let executable = launch.program.executable.file_name().unwrap_or_default();
    let names = [called.unwrap_or_default().as_bytes(), executable.as_bytes()];
    skips(orders.skip, names).then(|| {
        let skip = orders.skip.escape_ascii();
        (
            format!("KA_SKIP={skip}, in the environment or /etc/ka.conf, leaves it alone"),
            "KA_SKIP= ka run".to_owned(),
        )
    })
}

const fn mode_name(mode: ka_core::Mode) -> &'static str {
    match mode {
        ka_core::Mode::Force => "force",
        ka_core::Mode::Floor => "floor",
        ka_core::Mode::Default => "default",
    }
}

/// libka_preload.so, found.
struct Shim {
    path: PathBuf,
    elf: Elf,
}

/// The shim, found once.
fn shim() -> Result<&'static Shim, String> {
    static FOUND: OnceLock<Result<Shim, String>> = OnceLock::new();
    FOUND.get_or_init(find_shim).as_ref().map_err(Clone::clone)
}

/// Finds the shim: what KA_PRELOAD names, else beside this program, else where it is installed.
fn find_shim() -> Result<Shim, String> {
    let named = env::var_os("KA_PRELOAD").filter(|path| !path.is_empty());
    let places = match &named {
        Some(path) => vec![PathBuf::from(path)],
        None => places(),
    };
    let Some(path) = places.iter().find(|path| path.exists()) else {
        let places: Vec<_> = places.iter().map(|path| path.display().to_string()).collect();
        return Err(format!("{SHIM} is not there: looked for {}", places.join(", ")));
    };
    // The program may run in another folder, or change to one.
    let path = std::path::absolute(path).map_err(|error| format!("{}: {error}", path.display()))?;
    if named.is_some()
        && let Some(why) = is_strangers(&path)
    {
        return Err(format!("KA_PRELOAD={}: {why}", path.display()));
    }
    match Elf::read(&path) {
        Ok(Some(elf)) if elf.soname.is_some() || elf.is_position_independent => Ok(Shim { path, elf }),
        Ok(_) => Err(format!("{}: it is no shared library", path.display())),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

fn places() -> Vec<PathBuf> {
    let own = env::current_exe().and_then(|path| path.canonicalize());
    let folder = own.ok().and_then(|path| path.parent().map(Path::to_path_buf));
    let triple = format!("../lib/{}-linux-gnu/ka", env::consts::ARCH);
    let beside = folder.into_iter().flat_map(|folder| {
        ["", "../lib/ka", &triple, "../lib64/ka"].map(|place| folder.join(place).join(SHIM))
    });
    beside.chain([Path::new(PRIVATE_FOLDER).join(SHIM)]).collect()
}

/// Whether the environment that names a file may come from somebody with fewer rights than ours, and the file too.
fn is_strangers(path: &Path) -> Option<&'static str> {
    let (user, effective) = sys::users();
    if user != effective {
        return Some("ka runs with another user's rights, and does not trust the environment");
    }
    let through_sudo = user == 0 && env::var_os("SUDO_UID").is_some();
    let metadata = fs::metadata(path).ok()?;
    let is_roots = metadata.uid() == 0 && metadata.mode() & 0o022 == 0;
    (through_sudo && !is_roots).then_some("under sudo, it must be root's, and nobody else may write it")
}

/// A path that the loader takes in LD_PRELOAD, where blanks and colons separate and $ begins a word of its own.
///
/// One with any of them gets a link in a folder where nobody else can put anything. The link stays: the program's
/// children, and theirs, find the shim by it too.
fn plain_path(path: &Path) -> io::Result<PathBuf> {
    let is_plain = |path: &Path| {
        !path.as_os_str().as_bytes().iter().any(|byte| matches!(byte, b' ' | b':' | b'$' | 9..=13))
    };
    if is_plain(path) {
        return Ok(path.to_path_buf());
    }
    let (_, user) = sys::users();
    let runtime = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|folder| folder.is_absolute());
    // Root's programs may become other users', who must find it too.
    let (first, mode) = if user == 0 { (Some("/run".into()), 0o755) } else { (runtime, 0o700) };
    let first = first.map(|folder| folder.join("ka")).filter(|folder| is_plain(folder));
    let mut result = Err(io::Error::from(io::ErrorKind::NotFound));
    for folder in first.into_iter().chain([format!("/tmp/ka-{user}").into()]) {
        result = link(&folder, mode, user, path);
        if result.is_ok() {
            break;
        }
    }
    result
}

/// Makes a link to a path in a folder that is the user's alone.
fn link(folder: &Path, mode: u32, user: u32, path: &Path) -> io::Result<PathBuf> {
    match DirBuilder::new().mode(mode).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let found = fs::symlink_metadata(folder)?;
    if !found.is_dir() || found.uid() != user || found.mode() & 0o022 != 0 {
        return Err(io::Error::other(format!("{} is not ours alone", folder.display())));
    }
    let target = fs::metadata(path)?;
    let link = folder.join(format!("libka_preload-{:x}-{:x}.so", target.dev(), target.ino()));
    if fs::read_link(&link).is_ok_and(|there| there == path) {
        return Ok(link);
    }
    // Others who start programs at the same time find the old link or the new one.
    let new = folder.join(format!(".{}", std::process::id()));
    let _ = fs::remove_file(&new);
    symlink(path, &new)?;
    fs::rename(&new, &link)?;
    Ok(link)
}

/// /etc/ka.conf, as the shim reads it: only if it is a regular file of root's that nobody else can write.
fn conf_text() -> Vec<u8> {
    const SIZE: u64 = 16384;
    let path = OsStr::from_bytes(CONF.to_bytes());
    let open = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let mut text = Vec::new();
    if let Ok(file) = open
        && let Ok(metadata) = file.metadata()
        && metadata.is_file()
        && metadata.uid() == 0
        && metadata.mode() & 0o022 == 0
        && metadata.len() < SIZE
    {
        let _ = file.take(SIZE).read_to_end(&mut text);
    }
    text
}

/// What the program gets for its environment: entries as they came.
struct Environment(Vec<OsString>);

impl Environment {
    fn set(&mut self, name: &[u8], value: &[u8]) {
        self.remove(name);
        self.0.push(OsString::from_vec([name, b"=", value].concat()));
    }

    fn remove(&mut self, name: &[u8]) {
        self.0.retain(|entry| value_of(entry, name).is_none());
    }

    fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.0.iter().find_map(|entry| value_of(entry, name))
    }

    /// What the shim will take its orders to be.
    fn orders<'a>(&'a self, file: &'a [u8]) -> Orders<'a> {
        let mut environment = Values::default();
        for entry in &self.0 {
            let (name, value) = ka_core::cut(entry.as_bytes(), b'=');
            environment.keep(name, value.unwrap_or_default());
        }
        let mut conf = Values::default();
        conf.keep_lines(file, |_| {});
        let mut orders = Orders::default();
        // What is wrong the shim names itself.
        orders.take_all(&[environment, conf], |_, _, _| {});
        orders
    }

    /// Puts what was said on the command line over what the environment and the file say, part by part.
    fn say(&mut self, launch: &Launch<'_>, file: &[u8]) {
        const PARTS: [(Timer, Variable); 4] = [
            (Timer::Idle, Variable::Idle),
            (Timer::Intvl, Variable::Intvl),
            (Timer::Cnt, Variable::Cnt),
            (Timer::UserTimeout, Variable::UserTimeout),
        ];
        if let Some(mode) = launch.mode {
            self.set(Variable::Mode.name(), mode.name().as_bytes());
        }
        let Some(said) = launch.said else { return };
        if launch.is_whole {
            self.set(Variable::Policy.name(), ka_core::Text::from(&said).as_bytes());
            for (_, variable) in PARTS {
                self.remove(variable.name());
            }
        } else if self.orders(file).policy.enabled() != Some(true) {
            self.set(Variable::Policy.name(), b"on");
        }
        // Each by its name too: /etc/ka.conf may name it, and goes by names.
        for (timer, variable) in PARTS {
            let auto = timer == Timer::UserTimeout && said.user_timeout() == UserTimeout::Auto;
            let value = said.timer(timer).map(|value| value.to_string()).or(auto.then(|| "auto".to_owned()));
            if let Some(value) = value {
                self.set(variable.name(), value.as_bytes());
            }
        }
    }

    /// Adds the shim behind what is preloaded already, unless it is there.
    fn append_preload(&mut self, shim: &Path) {
        const NAME: &[u8] = b"LD_PRELOAD";
        let there = self.get(NAME).unwrap_or_default().to_vec();
        let is_shim = |entry: &[u8]| {
            let entry = fs::canonicalize(OsStr::from_bytes(entry));
            entry.is_ok_and(|entry| shim.canonicalize().is_ok_and(|shim| shim == entry))
        };
        if there.split(|byte| matches!(byte, b':' | b' ')).filter(|entry| !entry.is_empty()).any(is_shim) {
            return;
        }
        let separator: &[u8] = if there.is_empty() { b"" } else { b":" };
        self.set(NAME, &[&there, separator, shim.as_os_str().as_bytes()].concat());
    }
}

/// The value in an entry of an environment, if it is of this name.
fn value_of<'a>(entry: &'a OsStr, name: &[u8]) -> Option<&'a [u8]> {
    entry.as_bytes().strip_prefix(name)?.strip_prefix(b"=")
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::path::Path;

    use ka_core::{Config, parse};

    use super::{Environment, Launch};
    use crate::program::Program;

    fn policy(entries: &[&str], file: &str, said: Option<&str>, is_whole: bool) -> Config {
        let program = Program::find("sh".as_ref()).unwrap();
        let launch = Launch {
            program: &program,
            arguments: &[],
            said: said.map(|text| parse(text.as_bytes()).unwrap()),
            is_whole,
            mode: None,
            verbose: false,
            best_effort: false,
        };
        let mut environment = Environment(entries.iter().map(OsString::from).collect());
        environment.say(&launch, file.as_bytes());
        environment.orders(file.as_bytes()).policy
    }

    #[test]
    fn the_command_line_overrides_the_environment_and_that_the_file() {
        let expect = |idle, intvl, cnt| Config::new(idle, intvl, cnt).unwrap();
        assert_eq!(policy(&[], "", None, false), expect(60, 10, 6));
        assert_eq!(policy(&["KA_POLICY=280,30,5"], "KA_IDLE=99", Some("cnt=3"), false), expect(99, 30, 3));
        assert_eq!(policy(&["KA_IDLE=7"], "KA_IDLE=99\nKA_CNT=9", Some("30,5,3"), true), expect(30, 5, 3));
        assert_eq!(policy(&["KA_IDLE=7"], "", Some("cnt=3"), false), expect(7, 10, 3));
        assert_eq!(policy(&["KA_POLICY=off"], "", Some("idle=30"), false), expect(30, 10, 6));
        assert_eq!(policy(&[], "KA_POLICY=off", Some("idle=30"), false), expect(30, 10, 6));
        assert_eq!(policy(&["KA_POLICY=off"], "", None, false).enabled(), Some(false));
    }

    #[test]
    fn what_is_preloaded_stays() {
        let mut environment = Environment(vec!["A=b".into(), "broken".into()]);
        environment.append_preload(Path::new("/lib/x.so"));
        assert_eq!(environment.get(b"LD_PRELOAD"), Some(&b"/lib/x.so"[..]));
        environment.set(b"LD_PRELOAD", b"/proc/self/exe /lib/y.so");
        environment.append_preload(Path::new("/bin/sh"));
        assert_eq!(environment.get(b"LD_PRELOAD"), Some(&b"/proc/self/exe /lib/y.so:/bin/sh"[..]));
        let own = std::env::current_exe().unwrap();
        environment.append_preload(&own);
        assert_eq!(environment.get(b"LD_PRELOAD"), Some(&b"/proc/self/exe /lib/y.so:/bin/sh"[..]));
        assert_eq!(environment.0.len(), 3);
    }
}
