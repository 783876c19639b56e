//! What the shim was told: by /etc/ka.conf, and by the environment, which overrides it.
//!
//! It is read once, when the library is loaded. A mistake is named once, on standard error, with what would be
//! right, and the default holds: a policy of two hours in silence would be worse than none.

#![expect(unsafe_code, reason = "static memory that is filled once, and the environment")]

use core::cell::UnsafeCell;
use core::ffi::{CStr, c_char};
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicU8, Ordering};

use ka_core::{
    CONF, CONF_LENGTH, CONF_LINE, CONF_OWNER, CONF_ROOM, Config, Errno, LOG_WRITE, Mode, Orders, Rule,
    Values, cut, skips, trim,
};

use crate::line::Line;
use crate::log;
use crate::raw::{self, File};

/// What the shim was told. It does not change while the program runs.
pub(crate) struct Settings {
    pub(crate) mode: Mode,
    /// The policy where no rule says otherwise: on, and everything named.
    pub(crate) base: Config,
    pub(crate) rules: Rules,
    /// Whether the program has more rights than the user who started it (setuid, setgid, capabilities).
    pub(crate) has_more_rights: bool,
    /// The path of the log, if there is one.
    pub(crate) log: Option<&'static CStr>,
    /// The program's name, for the log. Empty if there is no log.
    pub(crate) program: &'static [u8],
}

/// The rules, in their order.
pub(crate) struct Rules {
    len: usize,
    pub(crate) look_at_peer: bool,
    pub(crate) look_at_local_port: bool,
}

const MOST_RULES: usize = 64;

/// Where the rules are. Pages that a program without rules never touches.
static RULES: Place<[Rule; MOST_RULES]> = Place::new();

impl Rules {
    pub(crate) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn as_slice(&self) -> &[Rule] {
        // SAFETY: `push` has written so many, before there were settings to read them from.
        unsafe { core::slice::from_raw_parts(RULES.first().cast(), self.len) }
    }

    /// # Safety
    /// Only from the library's constructor.
    #[inline(never)]
    unsafe fn push(&mut self, rule: &Rule) -> bool {
        if self.len >= MOST_RULES {
            return false;
        }
        // SAFETY: there is a place for so many, and nobody reads it yet.
        unsafe { RULES.first().cast::<Rule>().add(self.len).write(*rule) };
        self.len = self.len.saturating_add(1);
        self.look_at_peer |= rule.looks_at_peer();
        self.look_at_local_port |= rule.looks_at_local_port();
        true
    }
}

/// Memory that the constructor fills, and the hooks read. Zeros until then, which take no place in the file.
struct Place<T>(UnsafeCell<MaybeUninit<T>>);

// SAFETY: written by the library's constructor alone, before `STATE` says that it may be read.
unsafe impl<T> Sync for Place<T> {}

impl<T> Place<T> {
    const fn new() -> Self {
        Self(UnsafeCell::new(MaybeUninit::zeroed()))
    }

    const fn first(&self) -> *mut T {
        self.0.get().cast()
    }
}

static SETTINGS: Place<Settings> = Place::new();

/// The text of /etc/ka.conf. Without this file, the pages are never touched.
static FILE: Place<[u8; CONF_ROOM]> = Place::new();

/// The memory for the settings' strings. They are not a part of `Settings`: most programs have no log, and each page
/// that a program writes at its start delays it by microseconds.
static LOG: Place<[u8; NAME_ROOM]> = Place::new();
static PROGRAM: Place<[u8; NAME_ROOM]> = Place::new();

const NAME_ROOM: usize = 1024;

/// Copies as much of a string as fits into its place, and ends it with a NUL.
///
/// # Safety
/// Only from the library's constructor, and once for each place.
unsafe fn keep(place: &'static Place<[u8; NAME_ROOM]>, text: &[u8]) -> &'static CStr {
    let size = text.len().min(NAME_ROOM - 1);
    // SAFETY: the place has room for the bytes and the NUL, and no other thread accesses it meanwhile.
    unsafe {
        let room = place.first().cast::<u8>();
        room.copy_from_nonoverlapping(text.as_ptr(), size);
        room.add(size).write(0);
        CStr::from_ptr(room.cast())
    }
}

/// Whether there are settings: not before the library is loaded, and not where it is to do nothing.
static STATE: AtomicU8 = AtomicU8::new(NONE);
const NONE: u8 = 0;
const ACTIVE: u8 = 1;

/// What the shim was told, if it is to do anything.
#[inline(always)]
pub(crate) fn active() -> Option<&'static Settings> {
    // SAFETY: ACTIVE says that they were written, and they are not written again.
    (STATE.load(Ordering::Acquire) == ACTIVE).then(|| unsafe { &*SETTINGS.first() })
}

/// Puts the settings where the hooks find them.
///
/// # Safety
/// Only once, from the library's constructor.
pub(crate) unsafe fn publish(settings: Settings) {
    // SAFETY: nobody reads it before STATE says so.
    unsafe { SETTINGS.first().write(settings) };
    STATE.store(ACTIVE, Ordering::Release);
}

/// Whether the program has more rights than the user who started it: `AT_SECURE`, getauxval(3).
fn has_more_rights() -> bool {
    // SAFETY: getauxval(3) takes a number.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// What the environment says, none of it in a program that has more rights than the user who started it.
fn environment() -> Values<'static> {
    unsafe extern "C" {
        static environ: *const *const c_char;
    }
    let mut values = Values::default();
    if has_more_rights() {
        return values;
    }
    // SAFETY: before main, nobody changes the environment: NULL, or an array of C strings that ends with NULL.
    let mut entry = unsafe { environ };
    // SAFETY: as above.
    while let Some(text) = unsafe { entry.as_ref() }.filter(|text| !text.is_null()) {
        // SAFETY: as above. What it points to is used only while the library is loaded.
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

/// What the file says: `NAME=value` a line, with or without quotes around the value; # begins a comment.
fn file(complain: &Complaints) -> Values<'static> {
    let mut values = Values::default();
    match file_text() {
        Ok(text) => values.keep_lines(text, |line| {
            complain.word(CONF.to_bytes(), b"", line, CONF_LINE, "it does not count");
        }),
        Err(right) => complain.about(CONF.to_bytes(), b"", right, "it is not read"),
    }
    values
}

/// Returns the text of the file. It is empty if the file is missing. Fails with a description of a valid file if this one
/// must not be used.
fn file_text() -> Result<&'static [u8], &'static str> {
    let file = match File::open(CONF, libc::O_RDONLY | libc::O_NONBLOCK, 0) {
        Ok(file) if file.is_roots_alone() => file,
        Err(Errno(libc::ENOENT)) => return Ok(b""),
        _ => return Err(CONF_OWNER),
    };
    // SAFETY: only the constructor calls this, once; and the zeros that are there are bytes.
    let buffer: &'static mut [u8] = unsafe { &mut *FILE.first() };
    let size = file.read(buffer).unwrap_or(0);
    let text: &[u8] = buffer;
    text.get(..size).filter(|text| text.len() < CONF_ROOM).ok_or(CONF_LENGTH)
}

/// Says what is wrong, a line each, unless it is to be quiet.
struct Complaints {
    quiet: bool,
}

impl Complaints {
    /// `ka: NAME="VALUE": what would be right; what holds instead`
    fn about(&self, name: &[u8], value: &[u8], right: &str, instead: &str) {
        self.word(name, value, b"", right, instead);
    }

    /// The same, of a word in the value.
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

/// Reads what the shim is told. `None`: to do nothing.
pub(crate) fn read() -> Option<Settings> {
    let environment = environment();
    let mut complain = Complaints { quiet: environment.is_quiet() };
    let file = file(&complain);
    complain.quiet |= file.is_quiet();

    let mut orders = Orders::default();
    // The environment's value, or the file's where that is none or is wrong, or what was before.
    orders.take_all(&[environment, file], |variable, value, right| {
        complain.about(variable.name(), value, right, "it does not count");
    });
    if orders.policy.enabled() != Some(true) || skips_this_program(orders.skip, has_more_rights()) {
        return None;
    }
    let mut settings = Settings {
        mode: orders.mode,
        base: orders.policy,
        rules: Rules { len: 0, look_at_peer: false, look_at_local_port: false },
        has_more_rights: has_more_rights(),
        log: None,
        program: b"",
    };
    read_rules(orders.rules, &mut settings, &complain);
    if !orders.log.is_empty() {
        let mut name = [0; 4096];
        let program = executable(&mut name);
        // SAFETY: only the constructor calls this, once.
        unsafe {
            let log = keep(&LOG, orders.log);
            settings.log = Some(log);
            settings.program = keep(&PROGRAM, program).to_bytes();
            if log::open(log).is_err() {
                complain.about(b"KA_LOG", orders.log, LOG_WRITE, "it does not count");
            }
        }
    }
    Some(settings)
}

/// KA_RULES: rules with semicolons between them. One that is wrong is dropped, the others hold.
fn read_rules(text: &[u8], settings: &mut Settings, complain: &Complaints) {
    let mut rest = Some(text);
    while let Some(rules) = rest {
        let (rule, behind) = cut(rules, b';');
        rest = behind;
        let rule = trim(rule);
        if rule.is_empty() {
            continue;
        }
        let (word, right) = match Rule::parse(rule, &settings.base) {
            // SAFETY: only the constructor calls this.
            Ok(parsed) if unsafe { settings.rules.push(&parsed) } => continue,
            Ok(_) => (rule, "there may be 64 rules"),
            Err(error) => (error.word, error.message),
        };
        let word = if word == rule { b"" } else { word };
        complain.word(b"KA_RULES", rule, word, right, "it does not count");
    }
}

/// Returns whether a pattern of `KA_SKIP` matches the program's name: the last part of /proc/self/exe or of argv\[0\].
///
/// The user who starts a program chooses argv\[0\]. If the program has more rights than this user, only /proc/self/exe
/// counts.
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

/// The last part of what /proc/self/exe points to.
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
    use std::ops::Deref;
    use std::sync::{Mutex, MutexGuard, PoisonError};

    use ka_core::{Action, Config, Mode};

    use super::{
        Complaints, NAME_ROOM, Place, Rules, Settings, base_name, executable, keep, read_rules,
        skips_this_program,
    };

    pub(crate) const POLICY: Config = Config::STANDARD;

    /// Settings with rules, which have one place: whoever has some keeps others from having any.
    pub(crate) struct Told {
        settings: Settings,
        _place: Option<MutexGuard<'static, ()>>,
    }

    impl Deref for Told {
        type Target = Settings;

        fn deref(&self) -> &Settings {
            &self.settings
        }
    }

    impl Told {
        pub(crate) fn settings_mut(&mut self) -> &mut Settings {
            &mut self.settings
        }
    }

    pub(crate) fn settings(mode: Mode, base: Config, rules: &str) -> Told {
        static PLACE: Mutex<()> = Mutex::new(());
        let place = (!rules.is_empty()).then(|| PLACE.lock().unwrap_or_else(PoisonError::into_inner));
        let rules_of_none = Rules { len: 0, look_at_peer: false, look_at_local_port: false };
        let mut settings =
            Settings { mode, base, rules: rules_of_none, has_more_rights: false, log: None, program: b"" };
        read_rules(rules.as_bytes(), &mut settings, &Complaints { quiet: true });
        Told { settings, _place: place }
    }

    /// The same, with a log, of a program of this name.
    pub(crate) fn logging(path: &[u8], program: &'static [u8]) -> Told {
        let mut told = settings(Mode::Force, POLICY, "");
        told.settings.log = Some(Box::leak(CString::new(path).unwrap().into_boxed_c_str()));
        told.settings.program = program;
        told
    }

    #[test]
    fn rules_are_kept_in_their_order_and_wrong_ones_are_dropped() {
        let told = settings(Mode::Force, POLICY, "; rport=22 skip ;nonsense; lport=1 idle=30;;");
        let actions: Vec<_> = told.rules.as_slice().iter().map(ka_core::Rule::action).collect();
        assert_eq!(actions, [Action::Skip, Action::Apply(POLICY.with_idle(Some(30)).unwrap())]);
        assert!(told.rules.look_at_peer && told.rules.look_at_local_port && !told.rules.is_empty());
        drop(told);
        let told = settings(Mode::Force, POLICY, "lport=1 skip");
        assert!(!told.rules.look_at_peer && told.rules.look_at_local_port);
        drop(told);
        let told = settings(Mode::Force, POLICY, "peer=::1 skip; on");
        assert!(told.rules.look_at_peer && !told.rules.look_at_local_port);
        drop(told);
        assert!(settings(Mode::Force, POLICY, "").rules.is_empty());
        let many = "on;".repeat(65);
        assert_eq!(settings(Mode::Force, POLICY, &many).rules.as_slice().len(), 64);
    }

    #[test]
    fn long_names_are_cut_off() {
        static SHORT: Place<[u8; NAME_ROOM]> = Place::new();
        static LONG: Place<[u8; NAME_ROOM]> = Place::new();
        // SAFETY: each place is this test's, and used once.
        let (short, long) = unsafe { (keep(&SHORT, b"/var/log/ka"), keep(&LONG, &[b'x'; 2000])) };
        assert_eq!((short, long.to_bytes()), (c"/var/log/ka", &[b'x'; 1023][..]));
    }

    #[test]
    fn the_program_is_known_by_the_last_part_of_its_path() {
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
