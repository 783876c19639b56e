//! Tests the apply rule on a fake kernel that records every call and fails on demand.

use std::cell::RefCell;

use ka_core::{Config, Errno, Error, Kernel, SockOpt, Socket, Timer, UserTimeout};

/// The options of a socket of the fake kernel: keepalive, idle, intvl, cnt, user timeout.
type OptionValues = [i32; 5];

const OFF: OptionValues = [0, 7200, 75, 9, 0];
const ON: OptionValues = [1, 60, 10, 5, 0];

/// A fake kernel with one socket. A value in force may be one that the real kernel does not let a program set, because
/// such a value can come from a sysctl.
struct Fake {
    protocol: i32,
    kind: i32,
    values: RefCell<OptionValues>,
    calls: RefCell<Vec<Call>>,
    /// The write that fails, counted from 1, and its error.
    fail: Option<(usize, Errno)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Call {
    Get(SockOpt),
    Set(SockOpt, i32),
}

impl Fake {
    fn tcp(values: OptionValues) -> Self {
        Self {
            protocol: libc::IPPROTO_TCP,
            kind: libc::SOCK_STREAM,
            values: RefCell::new(values),
            calls: RefCell::default(),
            fail: None,
        }
    }

    fn mptcp(values: OptionValues) -> Self {
        Self { protocol: libc::IPPROTO_MPTCP, ..Self::tcp(values) }
    }

    fn udp(values: OptionValues) -> Self {
        Self { protocol: libc::IPPROTO_UDP, kind: libc::SOCK_DGRAM, ..Self::tcp(values) }
    }

    fn failing(self, write: usize, errno: i32) -> Self {
        Self { fail: Some((write, Errno(errno))), ..self }
    }

    fn apply(&self, config: Config) -> Result<(), Error> {
        Socket::with_kernel(3, self).apply(&config)
    }

    fn values(&self) -> OptionValues {
        *self.values.borrow()
    }

    fn writes(&self) -> Vec<(SockOpt, i32)> {
        let write = |call: &Call| match *call {
            Call::Set(option, value) => Some((option, value)),
            Call::Get(_) => None,
        };
        self.calls.borrow().iter().filter_map(write).collect()
    }

    fn rejects(&self, option: SockOpt) -> bool {
        let mptcp = self.protocol == libc::IPPROTO_MPTCP;
        match option {
            SockOpt::Timer(Timer::UserTimeout) => mptcp || self.kind != libc::SOCK_STREAM,
            SockOpt::Timer(_) | SockOpt::Info => self.kind != libc::SOCK_STREAM,
            SockOpt::KeepAlive | SockOpt::Protocol | SockOpt::Type => false,
        }
    }
}

fn slot(option: SockOpt) -> usize {
    match option {
        SockOpt::KeepAlive => 0,
        SockOpt::Timer(Timer::Idle) => 1,
        SockOpt::Timer(Timer::Intvl) => 2,
        SockOpt::Timer(Timer::Cnt) => 3,
        SockOpt::Timer(Timer::UserTimeout) => 4,
        other => panic!("{other} is not kept"),
    }
}

impl Kernel for Fake {
    fn get(&self, _: i32, option: SockOpt, value: &mut [u8]) -> Result<usize, Errno> {
        self.calls.borrow_mut().push(Call::Get(option));
        if self.rejects(option) {
            return Err(Errno(libc::EOPNOTSUPP));
        }
        let number = match option {
            SockOpt::Protocol => self.protocol,
            SockOpt::Type => self.kind,
            option => self.values.borrow()[slot(option)],
        };
        value.copy_from_slice(&number.to_ne_bytes());
        Ok(4)
    }

    fn set(&self, _: i32, option: SockOpt, value: i32) -> Result<(), Errno> {
        self.calls.borrow_mut().push(Call::Set(option, value));
        match self.fail {
            Some((write, errno)) if self.writes().len() == write => return Err(errno),
            _ if self.rejects(option) => return Err(Errno(libc::ENOPROTOOPT)),
            _ => self.values.borrow_mut()[slot(option)] = value,
        }
        Ok(())
    }
}

fn timer(timer: Timer) -> SockOpt {
    SockOpt::Timer(timer)
}

fn config(enabled: Option<bool>, idle: i32, intvl: i32, cnt: i32, user_timeout: UserTimeout) -> Config {
    let config = Config::new(idle, intvl, cnt).unwrap().with_enabled(enabled);
    config.with_user_timeout(user_timeout).unwrap()
}

#[test]
fn apply_with_keepalive_off_makes_five_calls_and_turns_it_on_last() {
    let fake = Fake::tcp(OFF);
    fake.apply(Config::new(60, 10, 5).unwrap()).unwrap();
    assert_eq!(
        *fake.calls.borrow(),
        [
            Call::Get(SockOpt::KeepAlive),
            Call::Set(timer(Timer::Intvl), 10),
            Call::Set(timer(Timer::Cnt), 5),
            Call::Set(timer(Timer::Idle), 60),
            Call::Set(SockOpt::KeepAlive, 1),
        ]
    );
}

#[test]
fn apply_with_keepalive_off_writes_equal_values_to_replace_sysctls() {
    let fake = Fake::tcp(OFF);
    fake.apply(Config::new(7200, 75, 9).unwrap()).unwrap();
    assert_eq!(fake.writes().len(), 4);
}

#[test]
fn applying_the_same_policy_again_makes_four_reads_and_no_write() {
    let fake = Fake::tcp(ON);
    fake.apply(Config::new(60, 10, 5).unwrap()).unwrap();
    assert_eq!(fake.calls.borrow().len(), 4);
    assert_eq!(fake.writes(), []);
}

#[test]
fn apply_with_keepalive_on_writes_only_different_values() {
    let fake = Fake::tcp(ON);
    fake.apply(Config::new(30, 10, 5).unwrap()).unwrap();
    assert_eq!(fake.writes(), [(timer(Timer::Idle), 30)]);

    let fake = Fake::tcp(ON);
    fake.apply(Config::KEEP.with_user_timeout(UserTimeout::Milliseconds(9)).unwrap()).unwrap();
    assert_eq!(fake.writes(), [(timer(Timer::UserTimeout), 9)]);
}

#[test]
fn a_changed_interval_or_count_rearms_the_timer_with_the_idle_time() {
    for (config, change) in [
        (Config::new(60, 1, 5).unwrap(), (Timer::Intvl, 1)),
        (Config::new(60, 10, 2).unwrap(), (Timer::Cnt, 2)),
        (Config::KEEP.with_intvl(Some(1)).unwrap(), (Timer::Intvl, 1)),
        (Config::KEEP.with_cnt(Some(2)).unwrap(), (Timer::Cnt, 2)),
    ] {
        let fake = Fake::tcp(ON);
        fake.apply(config).unwrap();
        assert_eq!(fake.writes(), [(timer(change.0), change.1), (timer(Timer::Idle), 60)], "{config}");
    }
}

#[test]
fn an_idle_time_that_cannot_be_set_is_not_written_to_rearm() {
    for idle in [86400, 0, -1] {
        let fake = Fake::tcp([1, idle, 75, 9, 0]);
        fake.apply(Config::KEEP.with_intvl(Some(1)).unwrap()).unwrap();
        assert_eq!(fake.writes(), [(timer(Timer::Intvl), 1)]);
    }
}

#[test]
fn turning_keepalive_off_is_the_first_write_and_does_not_rearm() {
    let fake = Fake::tcp(ON);
    fake.apply(Config::KEEP.with_enabled(Some(false)).with_intvl(Some(1)).unwrap()).unwrap();
    assert_eq!(fake.writes(), [(SockOpt::KeepAlive, 0), (timer(Timer::Intvl), 1)]);
}

#[test]
fn keep_does_not_turn_keepalive_on() {
    let fake = Fake::tcp(OFF);
    fake.apply(Config::new(60, 10, 5).unwrap().with_enabled(None)).unwrap();
    assert_eq!(fake.values(), [0, 60, 10, 5, 0]);
}

#[test]
fn an_automatic_user_timeout_uses_named_values_and_values_in_force() {
    for start in [OFF, ON] {
        let [_, _, intvl, cnt, _] = start;
        let fake = Fake::tcp(start);
        let config = Config::KEEP.with_idle(Some(30)).unwrap().with_user_timeout(UserTimeout::Auto).unwrap();
        fake.apply(config).unwrap();
        assert_eq!(fake.values()[4], 1000 * (30 + intvl * cnt));
    }
}

/// Another process could change the value between two reads. The automatic user timeout would not match it then.
#[test]
fn a_kept_idle_time_is_read_only_once() {
    let fake = Fake::tcp(ON);
    let policy = Config::KEEP.with_timer(Timer::Intvl, Some(20)).unwrap();
    fake.apply(policy.with_user_timeout(UserTimeout::Auto).unwrap()).unwrap();
    assert_eq!(fake.values(), [1, 60, 20, 5, 160_000]);
    let reads = fake.calls.borrow().iter().filter(|call| **call == Call::Get(timer(Timer::Idle))).count();
    assert_eq!(reads, 1);
}

#[test]
fn an_automatic_user_timeout_out_of_range_changes_nothing() {
    for start in [[0, 32767, 32767, 127, 5], [1, 32767, 32767, 127, 5], [0, -1, 1, 1, 5], [1, -1000, 1, 1, 5]]
    {
        let fake = Fake::tcp(start);
        let error = fake.apply(Config::KEEP.with_user_timeout(UserTimeout::Auto).unwrap()).unwrap_err();
        assert!(matches!(error, Error::AutoOutOfRange { .. }), "{error}");
        assert_eq!((error.errno(), fake.writes()), (Errno(libc::EINVAL), vec![]));
    }
}

#[test]
fn a_user_timeout_on_mptcp_fails_before_any_write() {
    for start in [[0, 32767, 32767, 127, 0], [1, 32767, 32767, 127, 0]] {
        for user_timeout in [UserTimeout::Milliseconds(0), UserTimeout::Milliseconds(1), UserTimeout::Auto] {
            let fake = Fake::mptcp(start);
            let error = fake.apply(Config::KEEP.with_user_timeout(user_timeout).unwrap()).unwrap_err();
            assert_eq!(error.errno(), Errno(libc::EOPNOTSUPP), "{user_timeout:?}");
            assert_eq!(fake.writes(), []);
        }
    }
}

#[test]
fn sockets_that_are_not_tcp_are_rejected_unchanged() {
    let configs = [
        Config::KEEP,
        Config::KEEP.with_enabled(Some(true)),
        Config::KEEP.with_enabled(Some(false)),
        Config::new(60, 10, 5).unwrap(),
        Config::new(60, 10, 5).unwrap().with_enabled(Some(false)),
        Config::KEEP.with_user_timeout(UserTimeout::Auto).unwrap(),
        Config::KEEP.with_cnt(Some(3)).unwrap(),
    ];
    for start in [OFF, ON] {
        for config in configs {
            let fake = Fake::udp(start);
            assert_eq!(fake.apply(config), Err(Error::NotTcp), "{config}");
            assert_eq!(fake.values(), start, "{config}");
        }
    }
}

/// Applies a policy for each path of the code to sockets with keepalive on and off. Each write fails once.
#[test]
fn a_failed_write_restores_the_documented_values() {
    let mut tried = 0;
    for start in [OFF, ON, [0, 86400, 75, 9, 7], [1, 86400, -1, 9, 7]] {
        for enabled in [None, Some(true), Some(false)] {
            for user_timeout in [UserTimeout::Keep, UserTimeout::Auto, UserTimeout::Milliseconds(3000)] {
                let config = config(enabled, 30, 3, 2, user_timeout);
                let whole = Fake::tcp(start);
                whole.apply(config).unwrap();
                for write in 1..=whole.writes().len() {
                    let fake = Fake::tcp(start).failing(write, libc::EPERM);
                    let error = fake.apply(config).unwrap_err();
                    assert_eq!(error.errno(), Errno(libc::EPERM), "the first error is reported");
                    assert_restored(start, fake.values(), &format!("{config} on {start:?}, write {write}"));
                    tried += 1;
                }
            }
        }
    }
    assert!(tried > 100, "only {tried} failures tried");
}

fn assert_restored(before: OptionValues, after: OptionValues, what: &str) {
    assert_eq!(before[0], after[0], "{what}: keepalive changed");
    assert_eq!(before[4], after[4], "{what}: the user timeout changed");
    let was_on = before[0] == 1;
    for (timer, slot) in [(Timer::Idle, 1), (Timer::Intvl, 2), (Timer::Cnt, 3)] {
        // A value that cannot be set cannot be restored. With keepalive off, the timers may differ.
        if was_on && timer.accepts(before[slot]) {
            assert_eq!(before[slot], after[slot], "{what}: {timer:?} changed");
        }
    }
}

#[test]
fn a_failing_restore_still_reports_the_first_error() {
    struct FailingRestore(Fake);
    impl Kernel for FailingRestore {
        fn get(&self, fd: i32, option: SockOpt, value: &mut [u8]) -> Result<usize, Errno> {
            self.0.get(fd, option, value)
        }
        fn set(&self, fd: i32, option: SockOpt, value: i32) -> Result<(), Errno> {
            // The second write fails with EPERM, and all later writes fail with ENOMEM.
            match self.0.writes().len() {
                0 => self.0.set(fd, option, value),
                1 => self.0.set(fd, option, value).and(Err(Errno(libc::EPERM))),
                _ => Err(Errno(libc::ENOMEM)),
            }
        }
    }
    let kernel = FailingRestore(Fake::tcp(ON));
    let error = Socket::with_kernel(3, &kernel).apply(&Config::new(30, 3, 2).unwrap()).unwrap_err();
    assert_eq!(error.errno(), Errno(libc::EPERM));
}

#[test]
fn an_option_that_the_kernel_lacks_is_unsupported() {
    let fake = Fake::tcp(OFF).failing(1, libc::ENOPROTOOPT);
    let error = fake.apply(Config::new(60, 10, 5).unwrap()).unwrap_err();
    assert_eq!(error, Error::Unsupported(timer(Timer::Intvl)));
    assert_eq!(error.errno(), Errno(libc::EOPNOTSUPP));
}

#[test]
fn apply_fresh_makes_four_writes_and_no_read() {
    let fake = Fake::tcp(OFF);
    let policy = Config::new(60, 10, 5).unwrap();
    Socket::with_kernel(3, &fake).apply_fresh(&policy).unwrap();
    assert_eq!(fake.values(), ON);
    let expected = [(Timer::Intvl, 10), (Timer::Cnt, 5), (Timer::Idle, 60)];
    let expected = expected.map(|(which, value)| Call::Set(timer(which), value));
    let calls = fake.calls.borrow();
    assert_eq!(calls[..3], expected);
    assert_eq!(calls[3..], [Call::Set(SockOpt::KeepAlive, 1)]);
}

/// SCTP also has stream sockets, and a raw socket may have the protocol number of TCP.
#[test]
fn only_stream_sockets_of_tcp_are_accepted() {
    const SCTP: i32 = 132;
    for (protocol, kind, is_tcp) in [
        (libc::IPPROTO_TCP, libc::SOCK_STREAM, true),
        (libc::IPPROTO_MPTCP, libc::SOCK_STREAM, true),
        (libc::IPPROTO_TCP, libc::SOCK_RAW, false),
        (SCTP, libc::SOCK_STREAM, false),
        (0, libc::SOCK_STREAM, false),
    ] {
        let fake = Fake { protocol, kind, ..Fake::tcp(ON) };
        let answer = Socket::with_kernel(3, &fake).is_enabled();
        assert_eq!(answer, if is_tcp { Ok(true) } else { Err(Error::NotTcp) }, "{protocol} {kind}");
    }
}

/// EBADF and ENOTSOCK are returned as they are, without a further call to find the kind of the socket.
#[test]
fn a_bad_descriptor_costs_one_call() {
    struct BadDescriptor(RefCell<usize>, i32);
    impl Kernel for BadDescriptor {
        fn get(&self, _: i32, _: SockOpt, _: &mut [u8]) -> Result<usize, Errno> {
            *self.0.borrow_mut() += 1;
            Err(Errno(self.1))
        }
        fn set(&self, _: i32, _: SockOpt, _: i32) -> Result<(), Errno> {
            panic!("unexpected write");
        }
    }
    for errno in [libc::EBADF, libc::ENOTSOCK] {
        let gone = BadDescriptor(RefCell::default(), errno);
        let option = timer(Timer::Idle);
        let error = Socket::with_kernel(3, &gone).timer(Timer::Idle).unwrap_err();
        assert_eq!(error, Error::System { option, errno: Errno(errno) });
        assert_eq!(*gone.0.borrow(), 1);
    }
}

/// A user timeout of 2 must not be mistaken for the constant -2 of an automatic one.
#[test]
fn the_smallest_user_timeouts_are_not_special() {
    for milliseconds in [0, 1, 2, 3] {
        let config = Config::KEEP.with_user_timeout(UserTimeout::Milliseconds(milliseconds)).unwrap();
        assert_eq!(config.user_timeout(), UserTimeout::Milliseconds(milliseconds));
        assert_eq!(config.timer(Timer::UserTimeout), Some(milliseconds));
    }
}
