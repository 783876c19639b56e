//! Examines a program before it is started: finds its file, follows `#!` lines, and determines its privileges.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::client::Client;
use crate::env_arguments::EnvArguments;
use crate::failure::{Failure, NOT_EXECUTABLE, NOT_FOUND};
use crate::wrapper;
use ka_reach::elf::Elf;
use ka_reach::reason::reason;
use ka_reach::{file, privilege, user};

/// A program to be started.
#[derive(Debug)]
pub(crate) struct Program {
    /// The path for execve(2).
    pub(crate) path: PathBuf,
    /// The scripts between `path` and `executable`. Each script is the interpreter of the script before. With
    /// `#!/usr/bin/env`, env(1) is one of them.
    pub(crate) scripts: Vec<PathBuf>,
    /// The file that the kernel finally executes: the program itself, or the interpreter of the last script.
    pub(crate) executable: PathBuf,
    /// The contents of `executable`. `None` if it is not an ELF file, or cannot be read.
    pub(crate) elf: Option<Elf>,
    /// The reason why the kernel sets `AT_SECURE`, so that the loader ignores LD_PRELOAD. `None` if the kernel does not
    /// set it.
    pub(crate) secure: Option<&'static str>,
    /// `true` if env(1) in a `#!` line removes or changes LD_PRELOAD.
    pub(crate) drops_preload: bool,
    /// `true` if the file is neither an ELF file nor a script with `#!`. As with execvp(3), the shell runs such a file.
    pub(crate) is_plain_text: bool,
    /// The reason why a preloaded library does not reach the program in `starts`. `None` if the library reaches that
    /// program, or if ka does not know.
    pub(crate) loses_preload: Option<String>,
    /// The entry of the table of clients, if a server may do the program's work.
    pub(crate) client: Option<&'static Client>,
    /// The program that this one becomes or starts, as nice(1) does, if known.
    pub(crate) starts: Option<Box<Program>>,
}

/// The maximum number of launchers before a program.
const MAX_LAUNCHERS: u32 = 20;

/// The maximum number of scripts that the kernel follows. fs/exec.c, `exec_binprm`
const MAX_SCRIPTS: usize = 5;

impl Program {
    /// Finds a program as execvp(3) does, and examines its file.
    pub(crate) fn find(name: &OsStr) -> Result<Self, Failure> {
        let path = search(name)?;
        let mut program = Self {
            executable: path.clone(),
            path,
            scripts: Vec::new(),
            elf: None,
            secure: None,
            drops_preload: false,
            is_plain_text: false,
            loses_preload: None,
            client: None,
            starts: None,
        };
        program.follow_scripts()?;
        program.secure = secure_execution(&program.executable);
        Ok(program)
    }

    /// Finds the program of a command line, and examines its file and its arguments. The first word is the program's
    /// name.
    pub(crate) fn from_command(words: &[OsString]) -> Result<Self, Failure> {
        let (name, arguments) =
            words.split_first().map_or((OsStr::new(""), &[][..]), |(name, rest)| (name, rest));
        let mut program = Self::find(name)?;
        program.examine_arguments(arguments, MAX_LAUNCHERS);
        Ok(program)
    }

    /// Determines by the program's name and arguments whether it starts another program, and whether it keeps
    /// LD_PRELOAD.
    fn examine_arguments(&mut self, arguments: &[OsString], launchers: u32) {
        let is_program = |word: &OsStr| search(word).is_ok();
        self.loses_preload = wrapper::preload_loss(self.name(), arguments, is_program);
        self.client = Client::find(self.name(), arguments);
        let Some(words) = wrapper::started_command(self.name(), arguments, is_program) else { return };
        if let (Some((name, rest)), Some(left)) = (words.split_first(), launchers.checked_sub(1))
            && let Ok(mut started) = Self::find(name)
        {
            started.examine_arguments(rest, left);
            self.starts = Some(Box::new(started));
        }
    }

    /// Iterates over the program, the program that it starts, and so on.
    pub(crate) fn chain(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |program| program.starts.as_deref())
    }

    /// Follows `#!` lines to the file that the kernel finally executes.
    fn follow_scripts(&mut self) -> Result<(), Failure> {
        while let Some(Interpreter { path, argument }) = interpreter(&self.executable) {
            self.scripts.push(self.executable.clone());
            if self.scripts.len() > MAX_SCRIPTS {
                return Err(Failure::new(format_args!(
                    "{}: too many #! lines: the kernel follows at most {MAX_SCRIPTS} scripts",
                    self.path.display()
                ))
                .with_status(NOT_EXECUTABLE));
            }
            self.executable = path;
            let found = fs::metadata(&self.executable);
            if let Err(error) = found.and_then(|metadata| file::check_regular(&metadata)) {
                let script = self.scripts.last().unwrap_or(&self.path);
                let why = match error.kind() {
                    io::ErrorKind::NotFound => "no such file".to_owned(),
                    _ => reason(&error),
                };
                return Err(Failure::new(format_args!(
                    "{}: its interpreter {}: {why}",
                    script.display(),
                    self.executable.display()
                ))
                .with_status(NOT_EXECUTABLE));
            }
            if self.executable.file_name() == Some(OsStr::new("env"))
                && let Some(named) = argument.and_then(|argument| self.through_env(&argument))
            {
                self.scripts.push(self.executable.clone());
                self.executable = named;
            }
        }
        self.elf = Elf::read(&self.executable).ok().flatten();
        let mut start = [0; 4];
        let is_unreadable =
            file::open_regular(&self.executable).and_then(|mut file| file.read(&mut start)).is_err();
        if self.elf.is_none() && !is_unreadable && !start.starts_with(b"\x7fELF") {
            self.is_plain_text = true;
            self.scripts.push(self.executable.clone());
            self.executable = "/bin/sh".into();
            self.elf = Elf::read(&self.executable).ok().flatten();
        }
        Ok(())
    }

    /// Returns the program that `#!/usr/bin/env [-S] [options] [NAME=value] PROGRAM` starts. env(1)
    fn through_env(&mut self, argument: &[u8]) -> Option<PathBuf> {
        // Without -S, env gets the rest of the line as one argument.
        if !argument.starts_with(b"-") {
            return search(OsStr::from_bytes(argument)).ok();
        }
        let words = argument.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        let env = EnvArguments::parse(words);
        self.drops_preload |= env.drops_preload;
        search(env.command.first()?).ok()
    }

    /// Returns the file name of `path`.
    pub(crate) fn name(&self) -> &OsStr {
        self.path.file_name().unwrap_or_default()
    }
}

/// Finds a program as execvp(3) does.
fn search(name: &OsStr) -> Result<PathBuf, Failure> {
    let not_found =
        |why: &str| Failure::new(format_args!("{}: {why}", Path::new(name).display())).with_status(NOT_FOUND);
    let refused = |path: &Path, why: &dyn std::fmt::Display| {
        Failure::new(format_args!("{}: {why}", path.display())).with_status(NOT_EXECUTABLE)
    };
    let check = |path: &Path| -> io::Result<()> {
        file::check_regular(&fs::metadata(path)?)?;
        file::check_executable(path)
    };
    if name.is_empty() {
        return Err(not_found("the name of the program is empty"));
    }
    if name.as_bytes().contains(&b'/') {
        let path = PathBuf::from(name);
        return match check(&path) {
            Ok(()) => Ok(path),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
                Err(not_found("no such program"))
            }
            Err(error) => Err(refused(&path, &reason(&error))),
        };
    }
    // If PATH is not set, glibc searches these two directories.
    let folders = env::var_os("PATH").unwrap_or_else(|| OsString::from("/bin:/usr/bin"));
    let mut denied = None;
    for folder in folders.as_bytes().split(|byte| *byte == b':') {
        let folder = if folder.is_empty() { Path::new(".") } else { Path::new(OsStr::from_bytes(folder)) };
        let path = folder.join(name);
        match check(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.raw_os_error() == Some(libc::EACCES) => {
                denied.get_or_insert((path, error));
            }
            Err(_) => {}
        }
    }
    match denied {
        Some((path, error)) => Err(refused(&path, &reason(&error))),
        None => Err(not_found("no such program on PATH")),
    }
}

/// The interpreter in the first line of a script.
struct Interpreter {
    path: PathBuf,
    argument: Option<Vec<u8>>,
}

/// Reads the first line of a script as the kernel does: at most 256 bytes. Blanks and tabs may surround the
/// interpreter's path, and the rest of the line is one argument. fs/binfmt_script.c
fn interpreter(path: &Path) -> Option<Interpreter> {
    let mut start = Vec::new();
    file::open_regular(path).ok()?.take(256).read_to_end(&mut start).ok()?;
    let line = start.strip_prefix(b"#!")?;
    let line = line.split(|byte| *byte == b'\n').next()?.trim_ascii();
    let end = line.iter().position(|byte| matches!(byte, b' ' | b'\t')).unwrap_or(line.len());
    let (name, argument) = line.split_at_checked(end)?;
    let argument = argument.trim_ascii();
    (!name.is_empty()).then(|| Interpreter {
        path: OsString::from_vec(name.to_vec()).into(),
        argument: (!argument.is_empty()).then(|| argument.to_vec()),
    })
}

const SETUID: u32 = 0o4000;
/// The bits of a setgid file: the setgid bit, and execute permission for the group. Without that permission, the setgid
/// bit used to mean mandatory locking.
const SETGID: u32 = 0o2010;

/// Describes the properties of a file that give a program more privileges than its user has: setuid, setgid,
/// capabilities.
pub(crate) fn privilege_facts(path: &Path) -> Vec<String> {
    let Ok(metadata) = fs::metadata(path) else { return Vec::new() };
    if file::is_nosuid(path) {
        let is_marked = metadata.mode() & (SETUID | 0o2000) != 0 || file::has_capabilities(path);
        let fact = "it is on a file system mounted nosuid, so its setuid bit, setgid bit and file \
                    capabilities have no effect";
        return if is_marked { vec![fact.to_owned()] } else { Vec::new() };
    }
    let setuid = metadata.mode() & SETUID != 0;
    let setgid = metadata.mode() & SETGID == SETGID;
    [
        setuid.then(|| format!("it is setuid: it always runs as user {}", metadata.uid())),
        setgid.then(|| format!("it is setgid: it always runs as group {}", metadata.gid())),
        file::has_capabilities(path).then(|| "it has file capabilities".to_owned()),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Returns the reason why the program gets more privileges than its user, so that the loader ignores LD_PRELOAD.
/// ld.so(8), "Secure-execution mode"; security/commoncap.c, `cap_bprm_creds_from_file`
fn secure_execution(path: &Path) -> Option<&'static str> {
    let ((user, effective_user), (group, effective_group)) = (user::users(), user::groups());
    if user != effective_user || group != effective_group {
        return Some("ka's real and effective IDs differ");
    }
    let metadata = fs::metadata(path).ok()?;
    if privilege::has_no_new_privileges() || file::is_nosuid(path) {
        return None;
    }
    if metadata.mode() & SETUID != 0 && metadata.uid() != user {
        Some("it is setuid")
    } else if metadata.mode() & SETGID == SETGID && metadata.gid() != group {
        Some("it is setgid")
    } else if user != 0 && file::has_capabilities(path) {
        Some("it has file capabilities")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    use super::Program;

    fn script(name: &str, text: &[u8]) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("ka-script-{name}-{}", std::process::id()));
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn executable(name: &str, text: &[u8]) -> (Program, std::path::PathBuf) {
        let path = script(name, text);
        let program = Program::find(path.as_os_str());
        fs::remove_file(&path).unwrap();
        (program.unwrap(), path)
    }

    #[test]
    fn scripts_are_followed() {
        let (program, path) = executable("sh", b"#! /bin/sh -e\n");
        assert_eq!((program.scripts, program.executable.as_path()), (vec![path], Path::new("/bin/sh")));
        for line in
            [&b"#!/usr/bin/env sh\n"[..], b"#!/usr/bin/env -S A=1 sh -x\n", b"#!/usr/bin/env -Ssh -x\n"]
        {
            let (program, _) = executable("env", line);
            assert!(program.executable.ends_with("sh"), "{program:?}");
            assert!(!program.drops_preload && program.elf.is_some());
        }
        for line in [&b"#!/usr/bin/env -S -i sh\n"[..], b"#!/usr/bin/env -S -u LD_PRELOAD sh"] {
            assert!(executable("bare", line).0.drops_preload);
        }
        let (program, _) = executable("none", b"echo\n");
        assert!(program.is_plain_text && program.executable == Path::new("/bin/sh"));
    }

    #[test]
    fn failures_have_the_shell_s_exit_status() {
        assert_eq!(Program::find("no-such-program".as_ref()).unwrap_err().status, 127);
        assert_eq!(Program::find("/no/such/program".as_ref()).unwrap_err().status, 127);
        assert_eq!(Program::find("".as_ref()).unwrap_err().status, 127);
        assert_eq!(Program::find("/etc/passwd".as_ref()).unwrap_err().status, 126);
        assert_eq!(Program::find("/".as_ref()).unwrap_err().status, 126);
        let path = script("lost", b"#!/no/such/interpreter\n");
        assert_eq!(Program::find(path.as_os_str()).unwrap_err().status, 126);
        fs::write(&path, format!("#!{}\n", path.display())).unwrap();
        assert_eq!(Program::find(path.as_os_str()).unwrap_err().status, 126);
        fs::remove_file(&path).unwrap();
    }
}
