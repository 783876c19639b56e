//! The shim: its policy, from the KA_ variables of the environment and of /etc/ka.conf.
//!
//! The variables are read once, when the library is loaded. A mistake is reported once, on standard error, with a
//! description of a valid value. The default value is then used, so the program still has a useful policy.

#![expect(unsafe_code, reason = "static memory that is filled once, and the environment")]

use core::cell::UnsafeCell;
use core::ffi::{CStr, c_char};
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicBool, Ordering};

use ka_core::bytes::cut;
use ka_core::{Errno, Timer};
use ka_policy::{
    CONF, CONF_LENGTH, CONF_LINE, CONF_OWNER, CONF_ROOM, LOG_WRITE, Policy, RTO_MAX_KERNEL, RuleBuffer,
    Source, Variables, skips,
};

use crate::line::Line;
use crate::log;
use crate::raw::{self, File};

/// The settings of the shim. They do not change while the program runs.
pub struct Shim {
    /// The policy. It turns keepalive on, and names all values.
    pub policy: Policy<'static>,
    /// True if the program has more rights than the user who started it (setuid, setgid, capabilities).
    pub(crate) has_more_rights: bool,
    /// The path of the log, if there is one.
    pub log: Option<&'static CStr>,
    /// The program's name, for the log. Empty if there is no log.
    pub(crate) program: &'static [u8],
}

/// The memory for the rules. A program without rules never touches these pages.
static RULES: Memory<RuleBuffer> = Memory::new();

/// Memory that the constructor fills and the hooks read. It is initially zero, so it takes no space in the file.
struct Memory<T>(UnsafeCell<MaybeUninit<T>>);

// SAFETY: only the library's constructor writes it, before it sets `ACTIVE`. The hooks read it only after that.
unsafe impl<T> Sync for Memory<T> {}

impl<T> Memory<T> {
    const fn new() -> Self {
        Self(UnsafeCell::new(MaybeUninit::zeroed()))
    }

    const fn first(&self) -> *mut T {
        self.0.get().cast()
    }
}

static SHIM: Memory<Shim> = Memory::new();

/// The text of /etc/ka.conf. Without this file, the pages are never touched.
static FILE: Memory<[u8; CONF_ROOM]> = Memory::new();

/// The memory for the strings. The strings are not in `Shim`, because most programs have no log, and each page that is
/// written at the start of a program costs microseconds.
static LOG: Memory<[u8; NAME_ROOM]> = Memory::new();
static PROGRAM: Memory<[u8; NAME_ROOM]> = Memory::new();

const NAME_ROOM: usize = 1024;

/// Copies a string to `memory`, with a NUL. A string that is too long is truncated.
///
/// # Safety
/// Call this only from the library's constructor, and once for each `memory`.
unsafe fn keep(memory: &'static Memory<[u8; NAME_ROOM]>, text: &[u8]) -> &'static CStr {
    let size = text.len().min(NAME_ROOM - 1);
    // SAFETY: `memory` has room for the bytes and the NUL, and no other thread accesses it meanwhile.
    unsafe {
        let room = memory.first().cast::<u8>();
        room.copy_from_nonoverlapping(text.as_ptr(), size);
        room.add(size).write(0);
        CStr::from_ptr(room.cast())
    }
}

/// True if the shim is active: the constructor has run, and the settings do not disable the shim.
static ACTIVE: AtomicBool = AtomicBool::new(false);

/// Returns the shim, if it is active.
#[inline(always)]
pub fn active() -> Option<&'static Shim> {
    // SAFETY: `publish` has written the value before it set `ACTIVE`, and nothing writes it again.
    ACTIVE.load(Ordering::Acquire).then(|| unsafe { &*SHIM.first() })
}

/// Makes the shim active.
///
/// # Safety
/// Call this only once, from the library's constructor.
pub unsafe fn publish(shim: Shim) {
    // SAFETY: nothing reads the value before `ACTIVE` is set.
    unsafe { SHIM.first().write(shim) };
    ACTIVE.store(true, Ordering::Release);
}

/// Returns whether the program has more rights than the user who started it: `AT_SECURE`, getauxval(3).
fn has_more_rights() -> bool {
    // SAFETY: getauxval(3) takes a number.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// Returns the variables of the environment. If the program has more rights than the user who started it, returns none.
fn environment() -> Source<'static> {
    unsafe extern "C" {
        static environ: *const *const c_char;
    }
    let mut values = Source::default();
    if has_more_rights() {
        return values;
    }
    // SAFETY: `environ` is NULL, or an array of C strings that ends with NULL. Before main, nothing changes it.
    let mut entry = unsafe { environ };
    // SAFETY: `entry` points to an entry of that array, which may be the NULL at its end.
    while let Some(text) = unsafe { entry.as_ref() }.filter(|text| !text.is_null()) {
        // SAFETY: the entry is a C string. It is used only while the library is being loaded.
        let text = unsafe { CStr::from_ptr(*text) }.to_bytes();
        if text.starts_with(b"KA_") {
            let (name, value) = cut(text, b'=');
            values.keep(name, value.unwrap_or_default());
        }
        // SAFETY: this entry was not the last.
        entry = unsafe { entry.add(1) };
    }
    values
}

/// Returns the variables of /etc/ka.conf.
fn file(complain: &Complaints) -> Source<'static> {
    let mut values = Source::default();
    match file_text() {
        Ok(text) => values.keep_lines(text, |line| {
            complain.word(CONF.to_bytes(), b"", line, CONF_LINE, "ignored");
        }),
        Err(right) => complain.about(CONF.to_bytes(), b"", right, "ignored"),
    }
    values
}

/// Returns the text of the file, or an empty text if the file is missing. If the file must not be used, fails with a
/// description of a valid file.
fn file_text() -> Result<&'static [u8], &'static str> {
    let file = match File::open(CONF, libc::O_RDONLY | libc::O_NONBLOCK, 0) {
        Ok(file) if file.is_roots_alone() => file,
        Err(Errno(libc::ENOENT)) => return Ok(b""),
        _ => return Err(CONF_OWNER),
    };
    // SAFETY: only the constructor calls this, once. The memory is zeroed, and zeros are valid bytes.
    let buffer: &'static mut [u8] = unsafe { &mut *FILE.first() };
    let size = file.read(buffer).map_err(|_| CONF_OWNER)?;
    let text: &[u8] = buffer;
    text.get(..size).filter(|text| text.len() < CONF_ROOM).ok_or(CONF_LENGTH)
}

/// Reports mistakes, one on each line, unless KA_QUIET disables that.
struct Complaints {
    quiet: bool,
}

impl Complaints {
    /// Reports a wrong value: `ka: NAME="VALUE": description of a valid value; consequence`
    fn about(&self, name: &[u8], value: &[u8], right: &str, instead: &str) {
        self.word(name, value, b"", right, instead);
    }

    /// Reports a wrong word in a value.
    fn word(&self, name: &[u8], value: &[u8], word: &[u8], right: &str, instead: &str) {
        if self.quiet {
            return;
        }
        let mut line = Line::new();
        line.text(b"ka: ").text(name);
        if !value.is_empty() {
            line.text(b"=\"").foreign(value).text(b"\"");
        }
        if !word.is_empty() {
            line.text(b": \"").foreign(word).text(b"\"");
        }
        line.text(b": ").text(right.as_bytes()).text(b"; ").text(instead.as_bytes());
        raw::write(libc::STDERR_FILENO, line.end());
    }
}

/// Reads the settings. Returns `None` if they say to do nothing.
///
/// # Safety
/// Call this only once, from the library's constructor.
pub unsafe fn read() -> Option<Shim> {
    let environment = environment();
    let mut complain = Complaints { quiet: environment.is_quiet() };
    let file = file(&complain);
    complain.quiet |= file.is_quiet();

    let mut variables = Variables::default();
    variables.take_all(&[environment, file], |variable, value, right| {
        complain.about(variable.name(), value, right, "ignored");
    });
    if variables.config.enabled() != Some(true) || skips_this_program(variables.skip, has_more_rights()) {
        return None;
    }
    // SAFETY: this is the constructor, which borrows the memory once. A rule consists of integers, so zeros are rules.
    let room = unsafe { &mut *RULES.first() };
    let policy = variables.policy(room, raw::retries, |rule, error| {
        // The word is a part of the rule.
        let word = if error.word.len() == rule.len() { b"" } else { error.word };
        complain.word(b"KA_RULES", rule, word, error.message, "ignored");
    });
    if policy.names(Timer::RtoMax) && raw::lacks_rto_max() {
        complain.about(b"rto_max", b"", RTO_MAX_KERNEL, "ignored");
    }
    let mut shim = Shim { policy, has_more_rights: has_more_rights(), log: None, program: b"" };
    if !variables.log.is_empty() {
        let mut name = [0; 4096];
        let program = executable(&mut name);
        // SAFETY: this is the constructor, which fills each memory once.
        unsafe {
            let log = keep(&LOG, variables.log);
            shim.log = Some(log);
            shim.program = keep(&PROGRAM, program).to_bytes();
            if log::open(log).is_err() {
                complain.about(b"KA_LOG", variables.log, LOG_WRITE, "ignored");
            }
        }
    }
    Some(shim)
}

/// Returns whether a pattern of `KA_SKIP` matches the program's name: the last part of /proc/self/exe or of argv\[0\].
///
/// The user who starts a program chooses argv\[0\]. If the program has more rights than this user, argv\[0\] is
/// ignored.
fn skips_this_program(patterns: &[u8], has_more_rights: bool) -> bool {
    if patterns.is_empty() {
        return false;
    }
    let (mut command, mut link) = ([0; 4096], [0; 4096]);
    let executable = executable(&mut link);
    if has_more_rights {
        return skips(patterns, [executable, executable]);
    }
    let size = File::open(c"/proc/self/cmdline", libc::O_RDONLY, 0).and_then(|file| file.read(&mut command));
    let command = command.get(..size.unwrap_or(0)).unwrap_or_default();
    skips(patterns, [base_name(cut(command, 0).0), executable])
}

/// Returns the last part of the path to which /proc/self/exe points.
fn executable(buffer: &mut [u8]) -> &[u8] {
    let size = raw::read_link(c"/proc/self/exe", buffer).unwrap_or(0);
    let path = buffer.get(..size).unwrap_or_default();
    base_name(path.strip_suffix(b" (deleted)").unwrap_or(path))
}

fn base_name(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::ffi::CString;

    use ka_core::Config;
    use ka_policy::{Mode, Policy, Rule, Rules};

    use super::{Memory, NAME_ROOM, Shim, base_name, executable, keep, skips_this_program};

    pub(crate) const POLICY: Config = Config::STANDARD;

    /// Returns a shim with this policy.
    pub(crate) fn shim_with(mode: Mode, config: Config, rules: &str) -> Shim {
        let room = Box::leak(Box::new([Rule::SKIP; Rules::MAX]));
        let rules = Rules::parse(rules.as_bytes(), &config, || 15, room, |_, _| {});
        Shim { policy: Policy { config, mode, rules }, has_more_rights: false, log: None, program: b"" }
    }

    /// Returns a shim that writes a log, in a program with this name.
    pub(crate) fn logging(path: &[u8], program: &'static [u8]) -> Shim {
        let log = Box::leak(CString::new(path).unwrap().into_boxed_c_str());
        Shim { log: Some(log), program, ..shim_with(Mode::Force, POLICY, "") }
    }

    #[test]
    fn long_strings_are_truncated() {
        static SHORT: Memory<[u8; NAME_ROOM]> = Memory::new();
        static LONG: Memory<[u8; NAME_ROOM]> = Memory::new();
        // SAFETY: only this test uses this memory, each once.
        let (short, long) = unsafe { (keep(&SHORT, b"/var/log/ka"), keep(&LONG, &[b'x'; 2000])) };
        assert_eq!((short, long.to_bytes()), (c"/var/log/ka", &[b'x'; 1023][..]));
    }

    #[test]
    fn the_name_of_the_program_is_the_last_part_of_its_path() {
        for (path, name) in [("/usr/bin/curl", "curl"), ("curl", "curl"), ("", ""), ("a/", "")] {
            assert_eq!(base_name(path.as_bytes()), name.as_bytes());
        }
        let own = std::env::current_exe().unwrap();
        let own = own.file_name().unwrap().to_str().unwrap();
        assert_eq!(executable(&mut [0; 4096]), own.as_bytes());
        for has_more_rights in [false, true] {
            let skips = |patterns| skips_this_program(patterns, has_more_rights);
            assert!(skips(own.as_bytes()) && skips(b"x, ka_preload-*"));
            assert!(!skips(b"") && !skips(b"x"));
        }
    }
}
