//! Tests the apply rule on a fake kernel that records every call and fails on demand.

use std::cell::RefCell;

use ka_core::{Config, Errno, Error, Kernel, RtoMax, SockOpt, Socket, Timer, UserTimeout};

/// The options of a socket of the fake kernel: keepalive, idle, intvl, cnt, user timeout, the longest time between two
/// retransmissions.
type OptionValues = [i32; 6];

const OFF: OptionValues = [0, 7200, 75, 9, 0, 120_000];
const ON: OptionValues = [1, 60, 10, 5, 0, 120_000];

/// A fake kernel with one socket. A value in force may be one that the real kernel does not let a program set, because
/// such a value can come from a sysctl.
struct Fake {
    protocol: i32,
    kind: i32,
    /// Linux 6.15 and later have `TCP_RTO_MAX_MS`.
    has_rto_max: bool,
    /// net.ipv4.tcp_retries2
    retries: u8,
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
            has_rto_max: true,
            retries: 15,
            values: RefCell::new(values),
            calls: RefCell::default(),
            fail: None,
        }
    }

    fn mptcp(values: OptionValues) -> Self {
        Self { protocol: libc::IPPROTO_MPTCP, ..Self::tcp(values) }
    }

    /// A TCP socket of a kernel before Linux 6.15.
    fn old(values: OptionValues) -> Self {
        Self { has_rto_max: false, ..Self::tcp(values) }
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
            SockOpt::Timer(Timer::RtoMax) => mptcp || !self.has_rto_max || self.kind != libc::SOCK_STREAM,
            SockOpt::Timer(Timer::UserTimeout) => mptcp || self.kind != libc::SOCK_STREAM,
            SockOpt::Timer(_) | SockOpt::Info | SockOpt::Subflows => self.kind != libc::SOCK_STREAM,
            SockOpt::KeepAlive | SockOpt::Protocol | SockOpt::Type | SockOpt::Cookie => false,
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
        SockOpt::Timer(Timer::RtoMax) => 5,
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

    fn retries(&self) -> u8 {
        self.retries
    }
}

fn timer(timer: Timer) -> SockOpt {
    SockOpt::Timer(timer)
}

fn config(enabled: Option<bool>, idle: i32, intvl: i32, cnt: i32, user_timeout: UserTimeout) -> Config {
    let config = Config::new(idle, intvl, cnt).unwrap().with_enabled(enabled);
    config.with_user_timeout(user_timeout).unwrap()
}

fn with_rto_max(config: Config, milliseconds: i32) -> Config {
    config.with_rto_max(RtoMax::Milliseconds(milliseconds)).unwrap()
}

fn with_auto_rto_max(config: Config) -> Config {
    config.with_rto_max(RtoMax::Auto).unwrap()
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
        let fake = Fake::tcp([1, idle, 75, 9, 0, 120_000]);
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
    assert_eq!(fake.values(), [0, 60, 10, 5, 0, 120_000]);
}

#[test]
fn an_automatic_user_timeout_uses_named_values_and_values_in_force() {
    for start in [OFF, ON] {
        let [_, _, intvl, cnt, ..] = start;
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
    assert_eq!(fake.values(), [1, 60, 20, 5, 160_000, 120_000]);
    let reads = fake.calls.borrow().iter().filter(|call| **call == Call::Get(timer(Timer::Idle))).count();
    assert_eq!(reads, 1);
}

#[test]
fn an_automatic_user_timeout_out_of_range_changes_nothing() {
    for [enabled, idle, intvl, cnt] in
        [[0, 32767, 32767, 127], [1, 32767, 32767, 127], [0, -1, 1, 1], [1, -1000, 1, 1]]
    {
        let fake = Fake::tcp([enabled, idle, intvl, cnt, 5, 2000]);
        let error = fake.apply(Config::KEEP.with_user_timeout(UserTimeout::Auto).unwrap()).unwrap_err();
        assert!(matches!(error, Error::AutoOutOfRange { .. }), "{error}");
        assert_eq!((error.errno(), fake.writes()), (Errno(libc::EINVAL), vec![]));
    }
}

#[test]
fn a_user_timeout_on_mptcp_fails_before_any_write() {
    for start in [[0, 32767, 32767, 127, 0, 120_000], [1, 32767, 32767, 127, 0, 120_000]] {
        for user_timeout in [UserTimeout::Milliseconds(0), UserTimeout::Milliseconds(1), UserTimeout::Auto] {
            let fake = Fake::mptcp(start);
            let error = fake.apply(Config::KEEP.with_user_timeout(user_timeout).unwrap()).unwrap_err();
            assert_eq!(error.errno(), Errno(libc::EOPNOTSUPP), "{user_timeout:?}");
            assert_eq!(fake.writes(), []);
        }
    }
}

/// Both values govern data even while keepalive is off. So they are read before the first write, and a failure of a
/// later write restores them.
#[test]
fn values_that_govern_data_are_read_first_and_written_before_the_timers() {
    let policy = config(Some(true), 30, 3, 2, UserTimeout::Milliseconds(3000));
    let fake = Fake::tcp(OFF);
    fake.apply(with_rto_max(policy, 2000)).unwrap();
    assert_eq!(
        *fake.calls.borrow(),
        [
            Call::Get(SockOpt::KeepAlive),
            Call::Get(timer(Timer::UserTimeout)),
            Call::Get(timer(Timer::RtoMax)),
            Call::Set(timer(Timer::UserTimeout), 3000),
            Call::Set(timer(Timer::RtoMax), 2000),
            Call::Set(timer(Timer::Intvl), 3),
            Call::Set(timer(Timer::Cnt), 2),
            Call::Set(timer(Timer::Idle), 30),
            Call::Set(SockOpt::KeepAlive, 1),
        ]
    );

    let fake = Fake::tcp(ON);
    fake.apply(with_rto_max(policy, 2000)).unwrap();
    assert_eq!(
        fake.writes(),
        [
            (timer(Timer::UserTimeout), 3000),
            (timer(Timer::RtoMax), 2000),
            (timer(Timer::Intvl), 3),
            (timer(Timer::Cnt), 2),
            (timer(Timer::Idle), 30),
        ]
    );

    // The restore begins with the timers.
    let fake = Fake::tcp([1, 60, 10, 5, 7, 4000]).failing(5, libc::EPERM);
    fake.apply(with_rto_max(policy, 2000)).unwrap_err();
    assert_eq!(
        fake.writes()[5..],
        [
            (timer(Timer::Intvl), 10),
            (timer(Timer::Cnt), 5),
            (timer(Timer::UserTimeout), 7),
            (timer(Timer::RtoMax), 4000),
        ]
    );
}

#[test]
fn rto_max_is_written_only_if_it_is_different_and_does_not_rearm() {
    for (policy, writes) in [
        (with_rto_max(Config::KEEP, 2000), vec![(timer(Timer::RtoMax), 2000)]),
        (with_rto_max(Config::KEEP, 120_000), vec![]),
        (with_rto_max(Config::new(60, 10, 5).unwrap(), 120_000), vec![]),
        (
            with_rto_max(Config::KEEP.with_enabled(Some(false)), 1000),
            vec![(SockOpt::KeepAlive, 0), (timer(Timer::RtoMax), 1000)],
        ),
    ] {
        let fake = Fake::tcp(ON);
        fake.apply(policy).unwrap();
        assert_eq!(fake.writes(), writes, "{policy}");
    }
    // The kernel reports a value that it has rounded up to its tick, which is at most 10 ms.
    for (old, is_written) in [(1749, true), (1750, false), (1752, false), (1759, false), (1760, true)] {
        for enabled in [0, 1] {
            let fake = Fake::tcp([enabled, 60, 10, 5, 0, old]);
            fake.apply(with_rto_max(Config::KEEP, 1750)).unwrap();
            assert_eq!(fake.writes().len(), usize::from(is_written), "{old}");
        }
    }
    // Unlike a timer, it does not follow its sysctl, so an equal value is not written while keepalive is off either.
    let fake = Fake::tcp([0, 60, 10, 5, 7, 4000]);
    fake.apply(with_rto_max(Config::KEEP.with_user_timeout(UserTimeout::Milliseconds(7)).unwrap(), 4000))
        .unwrap();
    assert_eq!(fake.writes(), []);
    // A policy that names no other value neither turns keepalive on nor checks the kind of the socket.
    let fake = Fake::tcp(OFF);
    fake.apply(with_rto_max(Config::KEEP, 2000)).unwrap();
    assert_eq!(
        *fake.calls.borrow(),
        [
            Call::Get(SockOpt::KeepAlive),
            Call::Get(timer(Timer::RtoMax)),
            Call::Set(timer(Timer::RtoMax), 2000)
        ]
    );
}

/// After 200 + 400 + 800 + 1600 ms, 12 further retransmissions of 15 take 24 s in total if they are 1750 ms apart.
#[test]
fn an_automatic_rto_max_uses_named_values_and_values_in_force() {
    for enabled in [0, 1] {
        let fake = Fake::tcp([enabled, 7200, 2, 5, 0, 120_000]);
        fake.apply(with_auto_rto_max(Config::KEEP.with_idle(Some(14)).unwrap())).unwrap();
        assert_eq!(fake.values(), [enabled, 14, 2, 5, 0, 1750]);

        // Five retransmissions take at most 200 + 400 + 800 + 1600 + 3200 + 6400 ms.
        let fake = Fake { retries: 5, ..Fake::tcp([enabled, 10, 2, 5, 0, 120_000]) };
        fake.apply(with_auto_rto_max(Config::KEEP)).unwrap();
        assert_eq!(fake.values()[5], 120_000);
        // 3 s and twice 3 s.
        let fake = Fake { retries: 5, ..Fake::tcp([enabled, 5, 2, 2, 0, 120_000]) };
        fake.apply(with_auto_rto_max(Config::KEEP)).unwrap();
        assert_eq!(fake.values()[5], 3000);
    }
    // The values in force may come from sysctls that cannot be set.
    for [idle, intvl, cnt] in
        [[0, 0, 0], [-1, 1, 1], [i32::MIN, i32::MAX, 127], [i32::MIN, i32::MIN, i32::MIN]]
    {
        for enabled in [0, 1] {
            let fake = Fake::tcp([enabled, idle, intvl, cnt, 0, 5000]);
            fake.apply(with_auto_rto_max(Config::KEEP)).unwrap();
            let whole = i64::from(idle) + i64::from(intvl) * i64::from(cnt);
            let expected = if whole > 1_000_000 { 120_000 } else { 1000 };
            assert_eq!(fake.values(), [enabled, idle, intvl, cnt, 0, expected]);
        }
    }
}

/// Another process could change the idle time between two reads. The two automatic values would not agree then.
#[test]
fn two_automatic_values_read_a_kept_idle_time_only_once() {
    let fake = Fake::tcp(ON);
    let policy = Config::KEEP.with_timer(Timer::Intvl, Some(20)).unwrap();
    fake.apply(with_auto_rto_max(policy.with_user_timeout(UserTimeout::Auto).unwrap())).unwrap();
    let reads = fake.calls.borrow().iter().filter(|call| **call == Call::Get(timer(Timer::Idle))).count();
    assert_eq!((fake.values()[..5].to_vec(), reads), (vec![1, 60, 20, 5, 160_000], 1));
}

#[test]
fn an_rto_max_that_the_kernel_or_the_socket_lacks_fails_before_any_write() {
    for start in [OFF, ON] {
        for base in [Config::KEEP, Config::new(30, 3, 2).unwrap(), Config::KEEP.with_enabled(Some(false))] {
            for policy in [with_rto_max(base, 2000), with_auto_rto_max(base)] {
                for fake in [Fake::mptcp(start), Fake::old(start)] {
                    let error = fake.apply(policy).unwrap_err();
                    assert_eq!(error, Error::Unsupported(timer(Timer::RtoMax)), "{policy}");
                    assert_eq!((error.errno(), fake.writes()), (Errno(libc::EOPNOTSUPP), vec![]), "{policy}");
                }
            }
        }
        // Other values are set, and settings without the option are read.
        let fake = Fake::old(start);
        fake.apply(Config::new(30, 3, 2).unwrap()).unwrap();
        assert_eq!(fake.values(), [1, 30, 3, 2, 0, 120_000]);
        assert_eq!(Socket::with_kernel(3, &fake).settings().unwrap().rto_max, None);
        let fake = Fake::tcp(start);
        assert_eq!(Socket::with_kernel(3, &fake).settings().unwrap().rto_max, Some(120_000));
    }
}

/// As hand-written code, the lenient call sets all values that the kernel accepts.
#[test]
fn lenient_sets_the_other_values_if_rto_max_is_missing_or_rejected() {
    let policy = with_rto_max(Config::new(30, 3, 2).unwrap(), 2000);
    for start in [OFF, ON] {
        for fake in [Fake::mptcp(start), Fake::old(start)] {
            let applied = Socket::with_kernel(3, &fake).apply_lenient(policy);
            assert_eq!(
                (applied, fake.values()),
                (Ok(policy.without(Timer::RtoMax)), [1, 30, 3, 2, 0, 120_000])
            );
        }
        // The first write is that of rto_max.
        let fake = Fake::tcp(start).failing(1, libc::EPERM);
        let applied = Socket::with_kernel(3, &fake).apply_lenient(policy);
        assert_eq!((applied, fake.values()), (Ok(policy.without(Timer::RtoMax)), [1, 30, 3, 2, 0, 120_000]));
        let fake = Fake::tcp(start);
        let applied = Socket::with_kernel(3, &fake).apply_lenient(policy);
        assert_eq!((applied, fake.values()), (Ok(policy), [1, 30, 3, 2, 0, 2000]));
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
        with_rto_max(Config::KEEP, 2000),
        with_auto_rto_max(Config::KEEP),
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
    let user_timeouts = [UserTimeout::Keep, UserTimeout::Auto, UserTimeout::Milliseconds(3000)];
    let rto_maxima = [RtoMax::Keep, RtoMax::Auto, RtoMax::Milliseconds(3000)];
    let data =
        user_timeouts.into_iter().flat_map(|user_timeout| rto_maxima.map(|rto_max| (user_timeout, rto_max)));
    for start in [OFF, ON, [0, 86400, 75, 9, 7, 4000], [1, 86400, -1, 9, 7, 4000]] {
        for enabled in [None, Some(true), Some(false)] {
            for (user_timeout, rto_max) in data.clone() {
                let config = config(enabled, 30, 3, 2, user_timeout).with_rto_max(rto_max).unwrap();
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
    assert!(tried > 400, "only {tried} failures tried");
}

fn assert_restored(before: OptionValues, after: OptionValues, what: &str) {
    assert_eq!(before[0], after[0], "{what}: keepalive changed");
    assert_eq!(before[4], after[4], "{what}: the user timeout changed");
    assert_eq!(before[5], after[5], "{what}: rto_max changed");
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
