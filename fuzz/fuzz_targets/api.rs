//! Calls every function that libka exports, as C does, with any arguments except invalid pointers, on descriptors of
//! every kind. Compares the result, errno, the written memory and the socket's options with ka.h.
//!
//! The options are read by getsockopt(2), never through ka. A step is a function and its arguments. The functions are
//! those of src/libka.map. If one has no arm here, the target does not compile.
//!
//! With `KA_FUZZ_LIBKA=libka.so` the target calls the functions of that library, not of the sources. So the inputs that
//! were found on the sources can test the release build.

#![no_main]
// Each `unsafe` here is a call of libka. Each pointer is NULL, or points to an object of the given size.
#![allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all of them, above")]
#![allow(
    non_camel_case_types,
    clippy::type_complexity,
    reason = "the names of C, and one type for each of them"
)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int};

use ka::beat::ka_beat;
use ka::config::ka_config;
use ka::reaper::ka_reaper;
use ka::status::ka_status;
use ka_fuzz::input::Input;
use ka_fuzz::kernel::{self, call, call_raw, words};
use ka_fuzz::memory::{Guarded, with_rooms};
use ka_fuzz::policy::{self, AUTO, KEEP, NONE, Policy, Wrong};
use ka_fuzz::sockets::Sockets;
use libc::{
    E2BIG, EBADF, EBADMSG, ECONNRESET, EINVAL, ENOENT, ENOTCONN, EOPNOTSUPP, EPIPE, ERANGE, ESTALE, ETIMEDOUT,
};
use libfuzzer_sys::fuzz_target;

include!(concat!(env!("OUT_DIR"), "/exports.rs"));

macro_rules! api {
    ($($module:ident $name:ident($($argument:ty),*) $(-> $answer:ty)?;)*) => {
        /// The functions of libka.
        struct Api {
            $($name: unsafe extern "C" fn($($argument),*) $(-> $answer)?,)*
        }

        impl Api {
            /// Returns the functions of the sources.
            fn linked() -> Self {
                Self { $($name: ka::$module::$name,)* }
            }

            /// Loads the functions of a library.
            fn loaded(path: &CStr) -> Self {
                // SAFETY: the path is a C string. The library is libka, and is never closed. Each name has its type in
                // ka.h.
                unsafe {
                    let library = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
                    assert!(!library.is_null(), "{path:?} cannot be loaded");
                    let find = |name: &str| {
                        let c_name = CString::new(name).unwrap();
                        let found = libc::dlsym(library, c_name.as_ptr());
                        assert!(!found.is_null(), "{path:?} has no {name}");
                        found
                    };
                    Self { $($name: std::mem::transmute::<
                        *mut libc::c_void,
                        unsafe extern "C" fn($($argument),*) $(-> $answer)?
                    >(find(stringify!($name))),)* }
                }
            }
        }
    };
}

api! {
    beat ka_beat_client(*const u8, *mut u64) -> c_int;
    beat ka_beat_nonce(*mut u8) -> c_int;
    beat ka_beat_sign(*const u8, usize, *const u8, *const ka_beat, *mut u8) -> c_int;
    beat ka_beat_verify(*const u8, usize, *const u8, u64, *const u8, *mut ka_beat) -> c_int;
    config ka_defaults(*mut ka_config) -> c_int;
    plan ka_data_time(*const ka_config, *mut u64, *mut u64) -> c_int;
    plan ka_detect_time(*const ka_config, *mut u64, *mut u64) -> c_int;
    plan ka_plan_detect(u32, *mut ka_config) -> c_int;
    plan ka_plan_path(u32, *mut ka_config) -> c_int;
    plan ka_plan_preset(*const c_char, *mut ka_config) -> c_int;
    probe ka_probe(c_int, c_int) -> c_int;
    reaper ka_reaper_expired(*mut ka_reaper, u64, *mut c_int, usize) -> c_int;
    reaper ka_reaper_forget(*mut ka_reaper, c_int) -> c_int;
    reaper ka_reaper_free(*mut ka_reaper);
    reaper ka_reaper_len(*const ka_reaper) -> usize;
    reaper ka_reaper_new(u32) -> *mut ka_reaper;
    reaper ka_reaper_next(*const ka_reaper, u64) -> c_int;
    reaper ka_reaper_touch(*mut ka_reaper, c_int, u64) -> c_int;
    socket ka_apply(c_int, *const ka_config) -> c_int;
    socket ka_disable(c_int) -> c_int;
    socket ka_enable(c_int, c_int, c_int, c_int) -> c_int;
    socket ka_enable_lenient(c_int, c_int, c_int, c_int) -> c_int;
    socket ka_get_cnt(c_int, *mut c_int) -> c_int;
    socket ka_get_idle(c_int, *mut c_int) -> c_int;
    socket ka_get_intvl(c_int, *mut c_int) -> c_int;
    socket ka_get_rto_max(c_int, *mut c_int) -> c_int;
    socket ka_get_user_timeout(c_int, *mut c_int) -> c_int;
    socket ka_is_enabled(c_int) -> c_int;
    socket ka_query(c_int, *mut ka_config) -> c_int;
    socket ka_set_rto_max(c_int, c_int) -> c_int;
    socket ka_set_user_timeout(c_int, c_int) -> c_int;
    status ka_get_status(c_int, *mut ka_status) -> c_int;
    text ka_explain(*const c_char, *mut c_char, usize) -> c_int;
    text ka_format(*const ka_config, *mut c_char, usize) -> c_int;
    text ka_parse(*const c_char, *mut ka_config) -> c_int;
    version ka_version() -> *const c_char;
    version ka_version_number() -> u32;
}

thread_local! {
    static WORLD: RefCell<(Api, Sockets)> = RefCell::new((
        match std::env::var("KA_FUZZ_LIBKA") {
            Ok(path) => Api::loaded(&CString::new(path).unwrap()),
            Err(_) => Api::linked(),
        },
        Sockets::new(),
    ));
}

fuzz_target!(|bytes: &[u8]| WORLD.with_borrow_mut(|(api, sockets)| with_rooms(|rooms| {
    sockets.begin();
    let mut run = Run { api, sockets, input: Input(bytes), rooms, reapers: Vec::new(), signed: None };
    while !run.input.is_empty() {
        let export = run.input.one_of(&ALL);
        run.step(export);
    }
    for (reaper, _) in std::mem::take(&mut run.reapers) {
        unsafe { (run.api.ka_reaper_free)(reaper) };
    }
})));

/// The expected connections of a reaper, each with its time and its turn.
#[derive(Default)]
struct Connections {
    timeout: u64,
    latest: u64,
    turns: usize,
    touched: BTreeMap<c_int, (u64, usize)>,
}

/// The arguments of `ka_beat_sign`, and its result.
#[derive(Clone, PartialEq, Eq)]
struct Signed {
    key: Vec<u8>,
    nonce: [u8; 16],
    client: u64,
    sequence: u64,
    frame: [u8; 56],
}

struct Run<'a> {
    api: &'a Api,
    sockets: &'a mut Sockets,
    input: Input<'a>,
    rooms: &'a mut [Guarded; 3],
    reapers: Vec<(*mut ka_reaper, Connections)>,
    signed: Option<Signed>,
}

/// The expected settings of a socket after a call, or the expected errno.
type Expected = Result<Policy, c_int>;

impl Run<'_> {
    fn step(&mut self, export: Export) {
        match export {
            Export::ka_apply => {
                let fd = self.descriptor();
                let (bytes, wanted) = self.config();
                let expected = wanted.and_then(|wanted| expect(fd, &wanted));
                let call_it = self.api.ka_apply;
                self.changing(fd, expected, bytes, |config| unsafe { call_it(fd, config.cast()) });
            }
            Export::ka_enable => {
                let fd = self.descriptor();
                let [idle, intvl, cnt] = [(); 3].map(|()| self.input.value());
                let wanted = Policy { enabled: 1, idle, intvl, cnt, ..Policy::KEEP };
                let expected = sound(wanted).and_then(|wanted| expect(fd, &wanted));
                let call_it = self.api.ka_enable;
                self.changing(fd, expected, None, |_| unsafe { call_it(fd, idle, intvl, cnt) });
            }
            Export::ka_enable_lenient => self.enable_lenient(),
            Export::ka_disable => {
                let fd = self.descriptor();
                let expected = expect(fd, &Policy { enabled: 0, ..Policy::KEEP });
                let call_it = self.api.ka_disable;
                self.changing(fd, expected, None, |_| unsafe { call_it(fd) });
            }
            Export::ka_set_user_timeout => {
                let fd = self.descriptor();
                let user_timeout = self.input.value();
                let user_timeout = if user_timeout == NONE { 0 } else { user_timeout };
                let wanted = Policy { user_timeout, ..Policy::KEEP };
                let expected = sound(wanted).and_then(|wanted| expect(fd, &wanted));
                let call_it = self.api.ka_set_user_timeout;
                self.changing(fd, expected, None, |_| unsafe { call_it(fd, user_timeout) });
            }
            Export::ka_set_rto_max => {
                let fd = self.descriptor();
                let rto_max = self.input.value();
                let wanted = Policy { rto_max, ..Policy::KEEP };
                let expected = sound(wanted).and_then(|wanted| expect(fd, &wanted));
                let call_it = self.api.ka_set_rto_max;
                self.changing(fd, expected, None, |_| unsafe { call_it(fd, rto_max) });
            }
            Export::ka_get_rto_max => {
                self.get(self.api.ka_get_rto_max, |policy| match policy.rto_max {
                    KEEP => Err(EOPNOTSUPP),
                    value => Ok(value),
                });
            }
            Export::ka_is_enabled => {
                let fd = self.descriptor();
                let expected = known(fd).map(|policy| policy.enabled);
                let call_it = self.api.ka_is_enabled;
                assert_eq!(unchanged(fd, || call(|| unsafe { call_it(fd) })), expected, "fd {fd}");
            }
            Export::ka_get_idle => self.get(self.api.ka_get_idle, |policy| Ok(policy.idle)),
            Export::ka_get_intvl => self.get(self.api.ka_get_intvl, |policy| Ok(policy.intvl)),
            Export::ka_get_cnt => self.get(self.api.ka_get_cnt, |policy| Ok(policy.cnt)),
            Export::ka_get_user_timeout => {
                // If the kernel cannot report the user timeout, libka must not either.
                self.get(self.api.ka_get_user_timeout, |policy| match policy.user_timeout {
                    KEEP => Err(EOPNOTSUPP),
                    value => Ok(value),
                });
            }
            Export::ka_query => {
                let fd = self.descriptor();
                let call_it = self.api.ka_query;
                self.filling(
                    |config| unchanged(fd, || call(|| unsafe { call_it(fd, config) })),
                    || known(fd),
                );
            }
            Export::ka_defaults => {
                let call_it = self.api.ka_defaults;
                self.filling(|config| call(|| unsafe { call_it(config) }), || Ok(kernel::defaults()));
            }
            Export::ka_plan_detect => {
                let within_ms = self.number();
                let call_it = self.api.ka_plan_detect;
                self.filling(
                    |config| call(|| unsafe { call_it(within_ms, config) }),
                    || policy::plan_detect(within_ms).ok_or(ERANGE),
                );
                if let Some(plan) = policy::plan_detect(within_ms) {
                    assert!(
                        plan.detection().unwrap().1 <= within_ms.into(),
                        "{plan:?} is later than {within_ms}"
                    );
                }
            }
            Export::ka_plan_path => {
                let path_idle_s = self.number();
                let call_it = self.api.ka_plan_path;
                self.filling(
                    |config| call(|| unsafe { call_it(path_idle_s, config) }),
                    || policy::plan_path(path_idle_s).ok_or(ERANGE),
                );
            }
            Export::ka_plan_preset => self.preset(),
            Export::ka_detect_time => self.time(self.api.ka_detect_time, Policy::detection),
            Export::ka_data_time => self.time(self.api.ka_data_time, |policy| {
                policy.data_time(kernel::retries(), kernel::sysctl("tcp_rto_max_ms").unwrap_or(120_000))
            }),
            Export::ka_get_status => self.status(),
            Export::ka_probe => self.probe(),
            Export::ka_parse => self.parse(),
            Export::ka_explain => self.explain(),
            Export::ka_format => self.format(),
            Export::ka_reaper_new => {
                let timeout = self.number();
                let (reaper, errno) = call_raw(|| unsafe { (self.api.ka_reaper_new)(timeout) });
                assert_eq!((reaper.is_null(), errno), (timeout == 0, (timeout == 0).then_some(EINVAL)));
                if !reaper.is_null() {
                    if self.reapers.len() == 3 {
                        let (old, _) = self.reapers.remove(0);
                        unsafe { (self.api.ka_reaper_free)(old) };
                    }
                    self.reapers
                        .push((reaper, Connections { timeout: timeout.into(), ..Connections::default() }));
                }
            }
            Export::ka_reaper_free => {
                let old = if self.input.byte() < 64 { None } else { self.reapers.pop() };
                let reaper = old.map_or(std::ptr::null_mut(), |(reaper, _)| reaper);
                let ((), errno) = call_raw(|| unsafe { (self.api.ka_reaper_free)(reaper) });
                assert_eq!(errno, None);
            }
            Export::ka_reaper_touch => {
                let (fd, now) = (self.connection(), self.input.long());
                let call_it = self.api.ka_reaper_touch;
                self.reaper(|reaper, connections| {
                    let answer = call(|| unsafe { call_it(reaper, fd, now) });
                    let Some(connections) = connections else { return assert_eq!(answer, Err(EINVAL)) };
                    if fd < 0 {
                        return assert_eq!(answer, Err(EBADF));
                    }
                    assert_eq!(answer, Ok(0));
                    connections.latest = connections.latest.max(now);
                    connections.turns += 1;
                    connections.touched.insert(fd, (connections.latest, connections.turns));
                });
            }
            Export::ka_reaper_forget => {
                let fd = self.connection();
                let call_it = self.api.ka_reaper_forget;
                self.reaper(|reaper, connections| {
                    let expected = match connections {
                        None => Err(EINVAL),
                        Some(connections) => connections.touched.remove(&fd).map(|_| 0).ok_or(ENOENT),
                    };
                    assert_eq!(call(|| unsafe { call_it(reaper, fd) }), expected);
                });
            }
            Export::ka_reaper_expired => self.expired(),
            Export::ka_reaper_next => {
                let now = self.input.long();
                let call_it = self.api.ka_reaper_next;
                self.reaper(|reaper, connections| {
                    let expected = connections.map_or((-1, Some(EINVAL)), |connections| {
                        let now = now.max(connections.latest);
                        let oldest = connections.touched.values().map(|(time, _)| *time).min();
                        let left = oldest.map(|oldest| connections.timeout.saturating_sub(now - oldest));
                        (left.map_or(-1, |left| c_int::try_from(left).unwrap_or(c_int::MAX)), None)
                    });
                    assert_eq!(call_raw(|| unsafe { call_it(reaper, now) }), expected);
                });
            }
            Export::ka_reaper_len => {
                let call_it = self.api.ka_reaper_len;
                self.reaper(|reaper, connections| {
                    let expected = connections.map_or(0, |connections| connections.touched.len());
                    assert_eq!(call_raw(|| unsafe { call_it(reaper) }), (expected, None));
                });
            }
            Export::ka_beat_nonce => {
                let mut room = self.rooms[0].put(&[0; 16]);
                let is_null = self.input.byte() < 16;
                let nonce = if is_null { kernel::NULL.cast() } else { room.pointer() };
                let answer = call(|| unsafe { (self.api.ka_beat_nonce)(nonce) });
                // Sixteen random bytes are practically never all zero.
                assert_eq!(
                    (answer, room.bytes() == [0; 16]),
                    (if is_null { Err(EINVAL) } else { Ok(0) }, is_null)
                );
            }
            Export::ka_beat_sign => self.sign(),
            Export::ka_beat_client => self.client(),
            Export::ka_beat_verify => self.verify(),
            Export::ka_version | Export::ka_version_number => {
                let (version, errno) = call_raw(|| unsafe { CStr::from_ptr((self.api.ka_version)()) });
                let (number, other_errno) = call_raw(|| unsafe { (self.api.ka_version_number)() });
                let parts: Vec<u32> =
                    version.to_str().unwrap().split('.').map(|part| part.parse().unwrap()).collect();
                assert_eq!(parts.iter().fold(0, |number, part| 1000 * number + part), number);
                assert_eq!((parts.len(), errno, other_errno), (3, None, None));
            }
        }
    }

    fn descriptor(&mut self) -> c_int {
        let number = self.input.byte();
        self.sockets.get(number).0
    }

    /// Takes a number of seconds or milliseconds. Small numbers are more likely.
    fn number(&mut self) -> u32 {
        match self.input.byte() % 4 {
            0 => self.input.byte().into(),
            1 => self.input.short().into(),
            2 => self.input.word() >> 8,
            _ => self.input.word(),
        }
    }

    /// Takes a descriptor number for a reaper. Most are small, like those that the kernel hands out.
    fn connection(&mut self) -> c_int {
        match self.input.byte() % 8 {
            0 => self.input.word().cast_signed(),
            1 => c_int::from(self.input.short()),
            _ => c_int::from(self.input.byte()),
        }
    }

    /// Takes a config for C, which may be too short or too long. `None` is NULL. Also returns the policy that the
    /// config describes according to ka.h, or the errno.
    fn config(&mut self) -> (Option<Vec<u8>>, Result<Policy, c_int>) {
        let values = [(); 6].map(|()| self.input.value());
        let form = self.input.byte();
        let size: u32 = match form {
            0..180 => 28,
            180..200 => 24,
            200..210 => return (None, Err(EINVAL)),
            210..235 => u32::from(self.input.byte() % 24) * 4,
            235..245 => self.input.byte().into(),
            245..250 => self.input.word(),
            _ => 4096 + 4 * u32::from(self.input.byte() % 3) - 4,
        };
        let tail = self.input.value();
        let is_size = size.is_multiple_of(4) && size >= 8;
        // The object has exactly its size. If the size is invalid, it has only the size field.
        let there = if is_size && size <= 4096 { size as usize } else { 4 };
        let mut whole = words(size, &values);
        while whole.len() < there {
            whole.extend(if whole.len() == there - 4 { tail } else { KEEP }.to_ne_bytes());
        }
        whole.truncate(there);
        let known = |n: usize| if (n as u32) < size / 4 - 1 { values[n] } else { KEEP };
        let wanted = if !is_size {
            Err(EINVAL)
        } else if size > 4096 || (size > 28 && !matches!(tail, 0 | KEEP)) {
            Err(E2BIG)
        } else {
            sound(Policy::from_c(std::array::from_fn(known)))
        };
        (Some(whole), wanted)
    }

    /// Makes a call that may change a socket. Checks that it has made exactly this change, or none after a failure.
    fn changing(
        &mut self,
        fd: c_int,
        expected: Expected,
        config: Option<Vec<u8>>,
        change: impl FnOnce(*mut u8) -> c_int,
    ) {
        self.changing_to(fd, expected.map(|after| (0, after)), config, change);
    }

    /// Does the same for a function that returns another number than 0.
    fn changing_to(
        &mut self,
        fd: c_int,
        expected: Result<(c_int, Policy), c_int>,
        config: Option<Vec<u8>>,
        change: impl FnOnce(*mut u8) -> c_int,
    ) {
        let before = kernel::everything(fd);
        let mut room = self.rooms[0].put(config.as_deref().unwrap_or_default());
        let pointer = if config.is_some() { room.pointer() } else { kernel::NULL.cast() };
        let answer = call(|| change(pointer));
        let after = kernel::everything(fd);
        assert_eq!(room.bytes(), config.unwrap_or_default(), "the config was written to");
        match expected {
            Ok((number, expected)) => {
                assert_eq!(answer, Ok(number), "fd {fd}: {expected:?}");
                assert_eq!(kernel::policy(fd), expected, "fd {fd}: before {before:?}");
            }
            Err(errno) => assert_eq!((answer, after), (Err(errno), before), "fd {fd}"),
        }
    }

    fn enable_lenient(&mut self) {
        let fd = self.descriptor();
        let values = [(); 3].map(|()| self.input.value());
        let call_it = self.api.ka_enable_lenient;
        let call_it = || unsafe { call_it(fd, values[0], values[1], values[2]) };
        if kernel::refusal(fd) == Some(libc::ENOPROTOOPT) {
            return assert_eq!(unchanged(fd, || call(call_it)), Ok(8), "fd {fd}");
        }
        let expected = known(fd).map(|mut after| {
            after.enabled = 1;
            let mut missed = 0;
            let timers = [&mut after.idle, &mut after.intvl, &mut after.cnt];
            for (n, (timer, value)) in
                timers.into_iter().zip(values).enumerate().filter(|(_, (_, value))| *value >= 1)
            {
                let most = if n == 2 { 127 } else { 32767 };
                *timer = value.min(most);
                missed |= if value > most { 1 << n } else { 0 };
            }
            (missed, after)
        });
        self.changing_to(fd, expected, None, |_| call_it());
    }

    /// Calls a function that returns one number.
    fn get(
        &mut self,
        function: unsafe extern "C" fn(c_int, *mut c_int) -> c_int,
        value: fn(&Policy) -> Result<c_int, c_int>,
    ) {
        let fd = self.descriptor();
        let is_null = self.input.byte() < 16;
        let expected = if is_null { Err(EINVAL) } else { known(fd).and_then(|policy| value(&policy)) };
        let before = 0x5a5a_5a5a_u32.to_ne_bytes();
        let mut room = self.rooms[0].put(&before);
        let pointer = if is_null { kernel::NULL.cast() } else { room.pointer() };
        let answer = unchanged(fd, || call(|| unsafe { function(fd, pointer) }));
        assert_eq!(answer, expected.map(|_| 0), "fd {fd}");
        assert_eq!(room.bytes(), expected.map_or(before, c_int::to_ne_bytes), "fd {fd}");
    }

    /// Takes a struct for output, with its size and random contents. `None` is NULL.
    fn output(&mut self) -> Option<Vec<u8>> {
        let size: u32 = match self.input.byte() {
            0..140 => 28,
            140..160 => 24,
            160..170 => return None,
            170..230 => u32::from(self.input.byte() % 24) * 4,
            230..250 => self.input.byte().into(),
            _ => u32::from(self.input.short() % 8192),
        };
        let mut bytes = vec![0x5a; size.max(4) as usize];
        bytes[..4].copy_from_slice(&size.to_ne_bytes());
        Some(bytes)
    }

    /// Calls a function that fills a config.
    fn filling(
        &mut self,
        function: impl FnOnce(*mut ka_config) -> Result<c_int, c_int>,
        policy: impl FnOnce() -> Result<Policy, c_int>,
    ) {
        let before = self.output();
        let mut room = self.rooms[0].put(before.as_deref().unwrap_or_default());
        let pointer = if before.is_some() { room.pointer() } else { kernel::NULL.cast() };
        let answer = function(pointer);
        let expected = filled(before.as_deref()).and_then(|()| policy()).map(|policy| policy.to_c());
        assert_eq!(answer, expected.map(|_| 0));
        assert_eq!(room.bytes(), after(before, expected.as_ref().ok().map(<[i32; 6]>::as_slice)));
    }

    fn preset(&mut self) {
        let choice = usize::from(self.input.byte());
        let named = ka_core::PRESETS.get(choice).map(|preset| preset.name.as_bytes());
        let mut name = named.unwrap_or_else(|| self.input.text(24)).to_vec();
        let seconds = ka_core::PRESETS
            .iter()
            .find(|preset| preset.name.as_bytes() == name)
            .map(|preset| preset.path_idle_s);
        name.push(0);
        let is_null = choice > 250;
        let mut text = self.rooms.last_mut().map(|room| room.put(&name));
        let pointer = text.as_mut().filter(|_| !is_null).map_or(kernel::NULL.cast(), |text| text.pointer());
        let call_it = self.api.ka_plan_preset;
        self.filling(
            |config| call(|| unsafe { call_it(pointer, config) }),
            || match seconds {
                _ if is_null => Err(EINVAL),
                None => Err(ENOENT),
                Some(seconds) => policy::plan_path(seconds).ok_or(ERANGE),
            },
        );
    }

    /// Calls a function that computes two times of a config.
    fn time(
        &mut self,
        function: unsafe extern "C" fn(*const ka_config, *mut u64, *mut u64) -> c_int,
        times: impl Fn(&Policy) -> Option<(u64, u64)>,
    ) {
        let (bytes, wanted) = self.config();
        let nulls = self.input.byte();
        let expected = match (nulls, wanted) {
            (0..16, _) => Err(EINVAL),
            (_, wanted) => wanted.and_then(|wanted| times(&wanted).ok_or(EINVAL)),
        };
        let before = [0x5a; 8];
        let [one, two, three] = &mut *self.rooms;
        let mut config = one.put(bytes.as_deref().unwrap_or_default());
        let (mut typical, mut worst) = (two.put(&before), three.put(&before));
        let pointer = if bytes.is_some() { config.pointer() } else { kernel::NULL.cast() };
        let typical_ms =
            if nulls.is_multiple_of(2) && nulls < 16 { kernel::NULL.cast() } else { typical.pointer() };
        let worst_ms = if nulls % 2 == 1 && nulls < 16 { kernel::NULL.cast() } else { worst.pointer() };
        let answer = call(|| unsafe { function(pointer, typical_ms, worst_ms) });
        assert_eq!(answer, expected.map(|_| 0));
        let (typical_ms, worst_ms) = expected
            .map_or((before, before), |(typical, worst)| (typical.to_ne_bytes(), worst.to_ne_bytes()));
        assert_eq!((typical.bytes(), worst.bytes()), (typical_ms.to_vec(), worst_ms.to_vec()));
    }

    fn status(&mut self) {
        let fd = self.descriptor();
        let before = self.output();
        let mut room = self.rooms[0].put(before.as_deref().unwrap_or_default());
        let pointer = if before.is_some() { room.pointer() } else { kernel::NULL.cast() };
        let earlier = kernel::info(fd);
        let call_it = self.api.ka_get_status;
        let answer = unchanged(fd, || call(|| unsafe { call_it(fd, pointer) }));
        let later = kernel::info(fd);
        let expected = filled(before.as_deref()).and_then(|()| kernel::refusal(fd).map_or(Ok(0), Err));
        assert_eq!(answer, expected, "fd {fd}");
        let found = room.bytes();
        if answer.is_err() {
            assert_eq!(found, before.unwrap_or_default());
            return;
        }
        let before = before.unwrap_or_default();
        let size = before.len().min(36);
        assert_eq!((&found[..4], &found[size..]), (&before[..4], &before[size..]));
        let (Some(earlier), Some(later)) = (earlier, later) else { panic!("fd {fd} has no TCP_INFO") };
        let fields = |info: &libc::tcp_info| {
            let unacked = if info.tcpi_state == 10 { 0 } else { info.tcpi_unacked };
            [
                info.tcpi_state.into(),
                info.tcpi_probes.into(),
                info.tcpi_retransmits.into(),
                unacked,
                info.tcpi_last_ack_recv,
                info.tcpi_last_data_recv,
                info.tcpi_last_data_sent,
                info.tcpi_rtt,
            ]
        };
        let (earlier, later) = (fields(&earlier), fields(&later));
        for (n, word) in found[4..size].chunks_exact(4).enumerate() {
            let word = u32::from_ne_bytes(word.try_into().unwrap());
            // A connection may change between the two reads. Then each value is one of both, or a time between them.
            let is_time = (4..7).contains(&n);
            let is_between = earlier[n] <= word && word <= later[n];
            // If a packet has arrived between the two reads, a time has started again.
            let is_anew = is_time && later[n] < earlier[n];
            assert!(
                word == earlier[n] || word == later[n] || (is_time && is_between) || is_anew,
                "fd {fd}, word {n}: {word}, but the kernel reports {} and {}",
                earlier[n],
                later[n]
            );
        }
    }

    fn probe(&mut self) {
        let fd = self.descriptor();
        // A silent connection blocks for the whole time.
        let timeout_ms = match self.input.byte() {
            0..64 => self.input.value().min(-1),
            timeout_ms => c_int::from(timeout_ms) % 64,
        };
        let state = || kernel::info(fd).map_or(0, |info| info.tcpi_state);
        let earlier = state();
        let call_it = self.api.ka_probe;
        let answer = unchanged(fd, || call(|| unsafe { call_it(fd, timeout_ms) }));
        if timeout_ms < 0 {
            return assert_eq!(answer, Err(EINVAL));
        }
        if let Some(errno) = kernel::refusal(fd) {
            return assert_eq!(answer, Err(errno), "fd {fd}");
        }
        let is_possible = |state| match state {
            1 | 4 | 5 | 8 | 9 | 11 => matches!(answer, Ok(0 | 1)),
            7 => matches!(answer, Err(ENOTCONN | ETIMEDOUT | ECONNRESET | EPIPE)),
            _ => answer == Err(ENOTCONN),
        };
        // The connection may have ended meanwhile.
        assert!(is_possible(earlier) || is_possible(state()), "fd {fd}, state {earlier}: {answer:?}");
    }

    fn parse(&mut self) {
        let is_null = self.input.byte() < 16;
        let mut text = self.input.text(80).to_vec();
        let meaning =
            Policy::parse(&text).map_err(|wrong| if wrong == Wrong::Range { ERANGE } else { EINVAL });
        text.push(0);
        let mut object = self.rooms.last_mut().map(|room| room.put(&text));
        let pointer =
            object.as_mut().filter(|_| !is_null).map_or(kernel::NULL.cast(), |object| object.pointer());
        let call_it = self.api.ka_parse;
        let before = self.output();
        let mut room = self.rooms[0].put(before.as_deref().unwrap_or_default());
        let config = if before.is_some() { room.pointer() } else { kernel::NULL.cast() };
        let answer = call(|| unsafe { call_it(pointer, config) });
        let size = before.as_deref().map_or(0, |bytes| u32::from_ne_bytes(bytes[..4].try_into().unwrap()));
        let expected = filled(before.as_deref()).and_then(|()| match meaning {
            _ if is_null => Err(EINVAL),
            // A config without the field, as in 0.1.0, cannot hold the value.
            Ok(policy) if policy.rto_max != KEEP && size < 28 => Err(EINVAL),
            meaning => meaning.map(|policy| policy.to_c()),
        });
        assert_eq!(answer, expected.map(|_| 0));
        assert_eq!(room.bytes(), after(before, expected.as_ref().ok().map(<[i32; 6]>::as_slice)));
    }

    fn explain(&mut self) {
        let nulls = self.input.byte();
        let size = usize::from(self.input.byte());
        let mut text = self.input.text(80).to_vec();
        let is_wrong = Policy::parse(&text).is_err();
        text.push(0);
        let (before, call_it) = (vec![0x5a; size], self.api.ka_explain);
        let [one, two, three] = &mut *self.rooms;
        let (mut c_text, mut message, mut whole) =
            (one.put(&text), two.put(&before), three.put(&[0x5a; 1024]));
        let c_text = if nulls < 16 { kernel::NULL.cast() } else { c_text.pointer() };
        let c_message = if nulls.is_multiple_of(16) { kernel::NULL.cast() } else { message.pointer() };
        let answer = call(|| unsafe { call_it(c_text, c_message, size) });
        if nulls < 16 || (nulls.is_multiple_of(16) && size > 0) {
            return assert_eq!((answer, message.bytes()), (Err(EINVAL), before));
        }
        let length = answer.unwrap();
        assert_eq!(length > 0, is_wrong);
        assert_eq!(call(|| unsafe { call_it(c_text, whole.pointer(), 1024) }), Ok(length));
        let whole = &whole.bytes()[..=usize::try_from(length).unwrap()];
        let (end, letters) = whole.split_last().unwrap();
        assert!(*end == 0 && letters.iter().all(|letter| matches!(letter, b' '..=b'~')), "{whole:?}");
        let mut expected = before;
        if size > 0 {
            let cut = letters.len().min(size - 1);
            expected[..cut].copy_from_slice(&letters[..cut]);
            expected[cut] = 0;
        }
        assert_eq!(message.bytes(), expected);
    }

    fn format(&mut self) {
        let (bytes, wanted) = self.config();
        let (is_null, size) = (self.input.byte() < 64, usize::from(self.input.byte() % 80));
        let before = vec![0x5a; size];
        let [one, two, _] = &mut *self.rooms;
        let (mut config, mut text) = (one.put(bytes.as_deref().unwrap_or_default()), two.put(&before));
        let c_config = if bytes.is_some() { config.pointer() } else { kernel::NULL.cast() };
        let c_text = if is_null { kernel::NULL.cast() } else { text.pointer() };
        let answer = call(|| unsafe { (self.api.ka_format)(c_config, c_text, size) });
        let wanted =
            wanted.and_then(|wanted| if is_null && size > 0 { Err(EINVAL) } else { Ok(wanted.text()) });
        assert_eq!(
            answer,
            wanted.as_ref().map(|text| c_int::try_from(text.len()).unwrap()).map_err(|errno| *errno)
        );
        let mut expected = before;
        if let (Ok(whole), 1..) = (wanted, size) {
            let cut = whole.len().min(size - 1);
            expected[..cut].copy_from_slice(&whole.as_bytes()[..cut]);
            expected[cut] = 0;
        }
        assert_eq!(text.bytes(), expected);
    }

    /// Runs a function with a reaper, or with NULL.
    fn reaper(&mut self, work: impl FnOnce(*mut ka_reaper, Option<&mut Connections>)) {
        let choice = usize::from(self.input.byte() % 16);
        let last = self.reapers.len().saturating_sub(1);
        match self.reapers.get_mut(choice.min(last)) {
            Some((reaper, connections)) if choice < 15 => work(*reaper, Some(connections)),
            _ => work(std::ptr::null_mut(), None),
        }
    }

    fn expired(&mut self) {
        let (now, most) = (self.input.long(), usize::from(self.input.byte() % 16));
        let is_null = self.input.byte() < 32;
        let before = vec![0x5a; 4 * most];
        let mut taken = None;
        let call_it = self.api.ka_reaper_expired;
        // The memory is borrowed as long as the reaper is.
        let [room, ..] = &mut *self.rooms;
        let mut object = room.put(&before);
        let fds: *mut c_int = if is_null { kernel::NULL.cast() } else { object.pointer() };
        let choice = usize::from(self.input.byte() % 16);
        let last = self.reapers.len().saturating_sub(1);
        let (reaper, connections) = match self.reapers.get_mut(choice.min(last)) {
            Some((reaper, connections)) if choice < 15 => (*reaper, Some(connections)),
            _ => (std::ptr::null_mut(), None),
        };
        let answer = call(|| unsafe { call_it(reaper, now, fds, most) });
        let expected = match connections {
            Some(connections) if !is_null || most == 0 => {
                connections.latest = connections.latest.max(now);
                let (latest, timeout) = (connections.latest, connections.timeout);
                let mut due: Vec<_> = connections
                    .touched
                    .iter()
                    .filter(|(_, (time, _))| latest - time >= timeout)
                    .map(|(fd, (_, turn))| (*turn, *fd))
                    .collect();
                due.sort_unstable();
                due.truncate(most);
                let due: Vec<_> = due.into_iter().map(|(_, fd)| fd).collect();
                connections.touched.retain(|fd, _| !due.contains(fd));
                Ok(c_int::try_from(taken.insert(due).len()).unwrap())
            }
            _ => Err(EINVAL),
        };
        assert_eq!(answer, expected);
        let mut after = before;
        for (place, fd) in after.chunks_exact_mut(4).zip(taken.unwrap_or_default()) {
            place.copy_from_slice(&fd.to_ne_bytes());
        }
        assert_eq!(object.bytes(), after);
    }

    fn sign(&mut self) {
        let nulls = self.input.byte();
        let is_null = |n: u8| nulls == n;
        let size = usize::from(self.input.byte() % 80);
        let key: Vec<u8> = self.input.bytes(size).to_vec();
        let key_size = if nulls == 4 { usize::MAX } else { key.len() };
        let nonce: [u8; 16] = self.input.array();
        let (client, sequence) = (self.input.long(), self.input.long());
        let beat = [client.to_ne_bytes(), sequence.to_ne_bytes()].concat();
        let [one, two, three] = &mut *self.rooms;
        let (mut c_key, mut c_frame) = (one.put(&key), two.put(&[0x5a; 56]));
        // The objects are next to each other, and the last one ends at the page without access.
        let mut rest = three.put(&[nonce.as_slice(), &beat].concat());
        let key_pointer = if is_null(0) { kernel::NULL.cast() } else { c_key.pointer() };
        let nonce_pointer: *mut u8 = if is_null(1) { kernel::NULL.cast() } else { rest.pointer() };
        let beat_pointer: *mut u8 =
            if is_null(2) { kernel::NULL.cast() } else { rest.pointer::<u8>().wrapping_add(16) };
        let frame_pointer = if is_null(3) { kernel::NULL.cast() } else { c_frame.pointer() };
        let answer = call(|| unsafe {
            (self.api.ka_beat_sign)(key_pointer, key_size, nonce_pointer, beat_pointer.cast(), frame_pointer)
        });
        let is_right = nulls > 4 && key.len() >= 16 && sequence > 0;
        assert_eq!(answer, if is_right { Ok(0) } else { Err(EINVAL) });
        let frame: [u8; 56] = c_frame.bytes().try_into().unwrap();
        if is_right {
            // This layout is in ka.h.
            let head =
                [b"KABT\x01\0\0\0".as_slice(), &client.to_be_bytes(), &sequence.to_be_bytes()].concat();
            assert_eq!(frame[..24], head);
            self.signed = Some(Signed { key, nonce, client, sequence, frame });
        } else {
            assert_eq!(frame, [0x5a; 56]);
        }
    }

    fn client(&mut self) {
        let nulls = self.input.byte();
        let mut frame = self.signed.as_ref().map_or([0; 56], |signed| signed.frame);
        let (place, mask) = (usize::from(self.input.byte() % 56), self.input.byte());
        frame[place] ^= mask;
        let [one, two, _] = &mut *self.rooms;
        let (mut c_frame, mut c_client) = (one.put(&frame), two.put(&[0x5a; 8]));
        let frame_pointer = if nulls == 0 { kernel::NULL.cast() } else { c_frame.pointer() };
        let client_pointer = if nulls == 1 { kernel::NULL.cast() } else { c_client.pointer() };
        let answer = call(|| unsafe { (self.api.ka_beat_client)(frame_pointer, client_pointer) });
        let is_frame = frame.starts_with(b"KABT\x01\0\0\0");
        let expected = match nulls {
            0 | 1 => Err(EINVAL),
            _ if is_frame => Ok(0),
            _ => Err(EBADMSG),
        };
        assert_eq!(answer, expected);
        let client = u64::from_be_bytes(frame[8..16].try_into().unwrap());
        let after = if expected.is_ok() { client.to_ne_bytes() } else { [0x5a; 8] };
        assert_eq!(c_client.bytes(), after);
    }

    fn verify(&mut self) {
        let Some(signed) = self.signed.clone() else { return };
        let (nulls, change) = (self.input.byte(), self.input.byte());
        let (place, mask) = (usize::from(self.input.byte()), self.input.byte());
        let mut given = signed.clone();
        match change % 8 {
            0 => given.frame[place % 56] ^= mask,
            1 => given.nonce[place % 16] ^= mask,
            2 => {
                let size = given.key.len();
                given.key[place % size] ^= mask;
            }
            3 => given.key.truncate(place),
            _ => {}
        }
        let last_sequence = match self.input.byte() % 4 {
            0 => signed.sequence,
            1 => signed.sequence.saturating_add(1),
            2 => self.input.long(),
            _ => signed.sequence - 1,
        };
        // HMAC pads a key that is shorter than a block with zeros, so zeros at its end make no difference.
        let stem = |key: &[u8]| key.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let same_key = given.key[..stem(&given.key)] == signed.key[..stem(&signed.key)]
            && (given.key == signed.key || signed.key.len() <= 64);
        let is_genuine = same_key && given.nonce == signed.nonce && given.frame == signed.frame;
        let expected = match nulls {
            0..4 => Err(EINVAL),
            _ if given.key.len() < 16 => Err(EINVAL),
            _ if !is_genuine => Err(EBADMSG),
            _ if signed.sequence <= last_sequence => Err(ESTALE),
            _ => Ok(0),
        };
        let [one, two, three] = &mut *self.rooms;
        let (mut c_key, mut c_beat) = (one.put(&given.key), two.put(&[0x5a; 16]));
        let mut rest = three.put(&[given.nonce.as_slice(), &given.frame].concat());
        let or_null = |n: u8, pointer: *mut u8| if nulls == n { kernel::NULL.cast() } else { pointer };
        let first: *mut u8 = rest.pointer();
        let answer = call(|| unsafe {
            (self.api.ka_beat_verify)(
                or_null(0, c_key.pointer()),
                given.key.len(),
                or_null(1, first),
                last_sequence,
                or_null(2, first.wrapping_add(16)),
                or_null(3, c_beat.pointer()).cast(),
            )
        });
        assert_eq!(answer, expected);
        let beat = [signed.client.to_ne_bytes(), signed.sequence.to_ne_bytes()].concat();
        assert_eq!(c_beat.bytes(), if expected.is_ok() { beat } else { vec![0x5a; 16] });
    }
}

fn sound(policy: Policy) -> Result<Policy, c_int> {
    if policy.is_sound() { Ok(policy) } else { Err(EINVAL) }
}

/// Returns the settings of a descriptor from the kernel, or its errno.
fn known(fd: c_int) -> Result<Policy, c_int> {
    kernel::refusal(fd).map_or_else(|| Ok(kernel::policy(fd)), Err)
}

/// Returns the expected settings of a descriptor after a policy was applied.
fn expect(fd: c_int, wanted: &Policy) -> Expected {
    let before = known(fd)?;
    if wanted.user_timeout != KEEP && before.user_timeout == KEEP {
        return Err(EOPNOTSUPP);
    }
    let mut after = wanted.on(&before);
    if after.user_timeout == AUTO {
        after.user_timeout = after.automatic().ok_or(EINVAL)?;
    }
    if wanted.rto_max != KEEP {
        if before.rto_max == KEEP {
            return Err(EOPNOTSUPP);
        }
        let exact =
            if after.rto_max == AUTO { after.automatic_rto_max(kernel::retries()) } else { after.rto_max };
        // A Multipath TCP socket that has fallen back to TCP reports a value, but rejects every write.
        let is_written = !(exact..=exact.saturating_add(9)).contains(&before.rto_max);
        if is_written && kernel::is_mptcp(fd) {
            return Err(EOPNOTSUPP);
        }
        after.rto_max = kernel::rto_max_after(before.rto_max, exact);
    }
    Ok(after)
}

/// Makes a call that must not change the socket.
fn unchanged<T>(fd: c_int, look: impl FnOnce() -> T) -> T {
    let before = kernel::everything(fd);
    let answer = look();
    assert_eq!(kernel::everything(fd), before, "fd {fd} was changed");
    answer
}

/// Returns the result by ka.h for an output struct of this size.
fn filled(object: Option<&[u8]>) -> Result<(), c_int> {
    let size = object.map_or(0, |bytes| u32::from_ne_bytes(bytes[..4].try_into().unwrap()));
    if size.is_multiple_of(4) && size >= 8 { Ok(()) } else { Err(EINVAL) }
}

/// Returns the expected output struct: its size, the words that fit, and the old contents after them.
fn after(before: Option<Vec<u8>>, written: Option<&[i32]>) -> Vec<u8> {
    let mut bytes = before.unwrap_or_default();
    for (place, word) in bytes.chunks_exact_mut(4).skip(1).zip(written.unwrap_or_default()) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}
