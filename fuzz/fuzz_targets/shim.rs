//! Compares the shim with a reference. KA_ variables and the text of /etc/ka.conf become a policy, a mode and rules, or
//! complaints. The rules decide by address and port. A socket gets the policy that they choose, and the program's own
//! setsockopt(2) changes only what the mode permits. The kernel reports the options of the socket.
//!
//! The input is the environment, one `NAME=value` on each line, a zero byte, the text of the file, a zero byte, and
//! then steps.
//!
//! The target makes the calls that the hooks make. It has no hooks itself, because they would intercept its own calls.

#![no_main]

use std::cell::{Cell, RefCell};
use std::ffi::{CString, OsStr, c_char, c_int};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::panic;
use std::path::Path;
use std::ptr;

use ka_fuzz::input::Input;
use ka_fuzz::kernel;
use ka_fuzz::policy::{AUTO, BLANKS, KEEP, Policy};
use ka_fuzz::rule::{self, Action, Network};
use ka_fuzz::sockets::tcp;
use ka_policy::{Cidr, Endpoint, Mode, Source, Variables};
use ka_preload::fuzz::{self as shim, Decision, Shim};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let environment = entries(input.text(4096));
    let file = input.text(4096);
    check_variables(&environment, file);
    check_shim(&environment, &mut input);
    while !input.is_empty() {
        check_address(&mut input);
    }
});

/// The meaning of the variables, according to the reference.
struct Reference {
    policy: Policy,
    mode: Mode,
    rules: Vec<u8>,
    skip: Vec<u8>,
    log: Vec<u8>,
    /// The names of variables with an invalid value, in their order.
    complaints: Vec<&'static str>,
}

const NAMES: [&str; 11] = [
    "KA_POLICY",
    "KA_IDLE",
    "KA_INTVL",
    "KA_CNT",
    "KA_USER_TIMEOUT",
    "KA_RTO_MAX",
    "KA_MODE",
    "KA_RULES",
    "KA_SKIP",
    "KA_LOG",
    "KA_QUIET",
];

type Entry = (Vec<u8>, Vec<u8>);

/// Reads `NAME=value` lines.
fn entries(text: &[u8]) -> Vec<Entry> {
    let lines = text.split(|byte| *byte == b'\n');
    lines
        .filter_map(|line| line.iter().position(|byte| *byte == b'=').map(|at| line.split_at(at)))
        .map(|(name, value)| (name.to_vec(), value[1..].to_vec()))
        .collect()
}

/// Returns the KA_ variables of the file, and the number of other lines.
fn file_entries(text: &[u8]) -> (Vec<Entry>, usize) {
    let mut found = Vec::new();
    let mut unknown = 0;
    for line in text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii) {
        if line.is_empty() || line[0] == b'#' {
            continue;
        }
        match line.iter().position(|byte| *byte == b'=').map(|at| (&line[..at], &line[at + 1..])) {
            Some((name, value)) if NAMES.iter().any(|known| known.as_bytes() == name) => {
                let is_quoted = value.len() >= 2 && value.starts_with(b"\"") && value.ends_with(b"\"");
                let value = if is_quoted { &value[1..value.len() - 1] } else { value };
                found.push((name.to_vec(), value.to_vec()));
            }
            _ => unknown += 1,
        }
    }
    (found, unknown)
}

fn first<'a>(entries: &'a [Entry], name: &str) -> Option<&'a [u8]> {
    entries.iter().find(|(known, _)| known == name.as_bytes()).map(|(_, value)| value.as_slice())
}

const STANDARD: Policy =
    Policy { enabled: 1, idle: 60, intvl: 10, cnt: 6, user_timeout: KEEP, rto_max: KEEP };

impl Reference {
    fn by(sources: &[&[Entry]]) -> Self {
        let mut reference = Self {
            policy: STANDARD,
            mode: Mode::Force,
            rules: Vec::new(),
            skip: Vec::new(),
            log: Vec::new(),
            complaints: Vec::new(),
        };
        // A stronger source comes first, and overrides the others.
        for source in sources.iter().rev() {
            for name in &NAMES[..10] {
                if first(source, name).is_some_and(|value| reference.take(name, value).is_none()) {
                    reference.complaints.push(name);
                }
            }
        }
        reference
    }

    fn take(&mut self, name: &str, value: &[u8]) -> Option<()> {
        let mut policy = self.policy;
        let timer = |policy: &mut Policy, name: &str| {
            let text = std::str::from_utf8(value).ok()?.trim_matches(BLANKS);
            policy.set(name, text, true).ok()?
        };
        match name {
            "KA_POLICY" => {
                policy =
                    Policy::parse_typed(value).ok().filter(|policy| policy.enabled != KEEP)?.on(&STANDARD);
            }
            "KA_IDLE" => timer(&mut policy, "idle")?,
            "KA_INTVL" => timer(&mut policy, "intvl")?,
            "KA_CNT" => timer(&mut policy, "cnt")?,
            "KA_USER_TIMEOUT" if value == b"keep" => policy.user_timeout = KEEP,
            "KA_USER_TIMEOUT" => timer(&mut policy, "user_timeout")?,
            "KA_RTO_MAX" if value == b"keep" => policy.rto_max = KEEP,
            "KA_RTO_MAX" => timer(&mut policy, "rto_max")?,
            "KA_MODE" => {
                self.mode = match value {
                    b"force" => Mode::Force,
                    b"floor" => Mode::Floor,
                    b"default" => Mode::Default,
                    _ => return None,
                }
            }
            "KA_RULES" => self.rules = value.to_vec(),
            "KA_SKIP" => self.skip = value.to_vec(),
            _ => self.log = Some(value).filter(|path| path.starts_with(b"/") && path.len() < 1024)?.to_vec(),
        }
        self.policy = Some(policy).filter(Policy::is_sound)?;
        Some(())
    }
}

fn words(config: &ka_core::Config) -> Policy {
    Policy {
        enabled: config.enabled().map_or(KEEP, i32::from),
        idle: config.idle().unwrap_or(KEEP),
        intvl: config.intvl().unwrap_or(KEEP),
        cnt: config.cnt().unwrap_or(KEEP),
        user_timeout: match config.user_timeout() {
            ka_core::UserTimeout::Keep => KEEP,
            ka_core::UserTimeout::Auto => AUTO,
            ka_core::UserTimeout::Milliseconds(value) => value,
        },
        rto_max: match config.rto_max() {
            ka_core::RtoMax::Keep => KEEP,
            ka_core::RtoMax::Auto => AUTO,
            ka_core::RtoMax::Milliseconds(value) => value,
        },
    }
}

/// The environment overrides the file, in the shim and in `ka run`.
fn check_variables(environment: &[Entry], file: &[u8]) {
    let (of_file, unknown) = file_entries(file);
    let reference = Reference::by(&[environment, &of_file]);

    let (mut environment_source, mut file_source) = (Source::default(), Source::default());
    for (name, value) in environment {
        let is_known = NAMES.iter().any(|known| known.as_bytes() == name);
        assert_eq!(environment_source.keep(name, value), is_known);
    }
    let mut lines = 0;
    file_source.keep_lines(file, |line| {
        assert!(!line.is_empty());
        lines += 1;
    });
    assert_eq!(lines, unknown);
    let mut variables = Variables::default();
    let mut complaints = Vec::new();
    variables.take_all(&[environment_source, file_source], |variable, _, right| {
        assert!(!right.is_empty());
        complaints.push(std::str::from_utf8(variable.name()).unwrap());
    });
    assert_eq!(complaints, reference.complaints);
    assert_eq!((words(&variables.config), variables.mode), (reference.policy, reference.mode));
    assert_eq!(
        (variables.rules, variables.skip, variables.log),
        (&*reference.rules, &*reference.skip, &*reference.log)
    );
    assert_eq!(environment_source.is_quiet(), first(environment, "KA_QUIET") == Some(b"1"));
    // Names of other programs.
    for name in [b"ka".as_slice(), b"python3.11", &reference.log] {
        let fits = reference
            .skip
            .split(|byte| *byte == b',')
            .map(<[u8]>::trim_ascii)
            .any(|pattern| !pattern.is_empty() && rule::glob(pattern, name));
        assert_eq!(ka_policy::skips(variables.skip, [name, name]), fits);
    }
}

/// Returns the rules, and the number of invalid ones.
fn rules(reference: &Reference) -> (Vec<rule::Rule>, usize) {
    let mut rules = Vec::new();
    let mut wrong = 0;
    for text in reference.rules.split(|byte| *byte == b';').map(<[u8]>::trim_ascii) {
        match rule::Rule::parse(text, &reference.policy) {
            _ if text.is_empty() => {}
            Some(mut rule) if rules.len() < 64 => {
                if let Action::Apply(policy) = &mut rule.action {
                    *policy = policy.resolved(kernel::retries());
                }
                rules.push(rule);
            }
            _ => wrong += 1,
        }
    }
    (rules, wrong)
}

/// Checks the shim's variables and messages in its constructor, and its calls on sockets.
fn check_shim(environment: &[Entry], input: &mut Input<'_>) {
    if has_conf() {
        return;
    }
    let mut reference = Reference::by(&[environment]);
    // The shim opens its log, and makes it if it is missing. The input may name any path.
    if !reference.log.is_empty() {
        return;
    }
    let is_quiet = first(environment, "KA_QUIET") == Some(b"1");
    let is_skipped = reference
        .skip
        .split(|byte| *byte == b',')
        .map(<[u8]>::trim_ascii)
        .any(|pattern| !pattern.is_empty() && own_names().iter().any(|name| rule::glob(pattern, name)));
    let (found, printed) = read(environment);
    let is_active = reference.policy.enabled == 1 && !is_skipped;
    let (rules, wrong) = if is_active { rules(&reference) } else { (Vec::new(), 0) };
    let complaints = if is_quiet { 0 } else { reference.complaints.len() + wrong };
    check_complaints(&printed, complaints, &reference);
    assert_eq!(found.is_some(), is_active);
    let Some(found) = found else { return };
    reference.policy = reference.policy.resolved(kernel::retries());
    let policy = found.policy;
    assert_eq!((words(&policy.config), policy.mode), (reference.policy, reference.mode));
    assert_eq!(found.log, None);
    assert_eq!(policy.rules.iter().count(), rules.len());
    assert_eq!(policy.rules.look_at_peer(), rules.iter().any(rule::Rule::looks_at_peer));
    assert_eq!(policy.rules.look_at_local_port(), rules.iter().any(|rule| rule.lport.is_some()));

    for _ in 0..4 {
        let (peer, lport) = (connection(input), input.short());
        let endpoint = peer.map(|(address, port)| Endpoint::v6(address.octets(), port));
        let action = policy.rules.first_match(endpoint, lport).map(|rule| match rule.action() {
            ka_policy::Action::Skip => Action::Skip,
            ka_policy::Action::Apply(config) => Action::Apply(words(&config)),
        });
        let expected = rules.iter().find(|rule| rule.matches(peer, lport)).map(|rule| rule.action);
        assert_eq!(action, expected, "{peer:?} {lport} {}", reference.rules.escape_ascii());
    }
    check_socket(found, &reference, &rules, input);
}

/// Checks that each complaint is one line, without control characters.
fn check_complaints(printed: &[u8], complaints: usize, reference: &Reference) {
    let mut lines: Vec<_> = printed.split(|byte| *byte == b'\n').collect();
    assert_eq!(lines.pop(), Some(b"".as_slice()), "a line has no end");
    assert_eq!(lines.len(), complaints, "{}", printed.escape_ascii());
    for (n, line) in lines.into_iter().enumerate() {
        assert!(line.len() < 512 && line.iter().all(|byte| matches!(byte, b' '..=b'~')));
        let name = reference.complaints.get(n).unwrap_or(&"KA_RULES");
        assert!(line.starts_with(format!("ka: {name}").as_bytes()), "{}", line.escape_ascii());
    }
}

/// Checks a socket that is made and about to connect, and whose program then sets options.
fn check_socket(shim: &Shim, reference: &Reference, rules: &[rule::Rule], input: &mut Input<'_>) {
    let is_v6 = input.byte() % 2 == 1;
    let family = if is_v6 { libc::AF_INET6 } else { libc::AF_INET };
    let socket = tcp(family).unwrap();
    let fd = socket.as_raw_fd();
    let fresh = kernel::policy(fd);
    shim::created(shim, fd, family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);

    // With rules in mode default, options that the program sets before connect stay.
    let mut has = kernel::policy(fd);
    let mut is_set = [false; 6];
    if reference.mode == Mode::Default && !rules.is_empty() {
        assert_eq!(has, fresh);
        for _ in 0..input.byte() % 4 {
            let option = input.byte() % 6;
            let value = input.value();
            match allowed(option, value, &has, None, reference.mode) {
                Some(wanted) => {
                    assert_eq!(program_sets(fd, option, value), Ok(()));
                    (has, is_set[usize::from(option)]) = (wanted, true);
                }
                None => assert_eq!(program_sets(fd, option, value), Err(libc::EINVAL)),
            }
        }
    }

    let (mut address, port) = connection(input).unwrap_or((Ipv6Addr::LOCALHOST, 443));
    if !is_v6 {
        let [.., a, b, c, d] = address.octets();
        address = Ipv4Addr::new(a, b, c, d).to_ipv6_mapped();
    }
    let to = match address.to_ipv4_mapped() {
        Some(v4) if !is_v6 => SocketAddr::new(IpAddr::V4(v4), port),
        _ => SocketAddr::new(IpAddr::V6(address), port),
    };
    let (bytes, size) = sockaddr(to);
    shim::connecting(shim, fd, bytes.as_ptr().cast(), size);
    // The kernel connects to the loopback if the address is unspecified.
    let peer = match address.to_ipv4_mapped() {
        Some(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.to_ipv6_mapped(),
        _ if address.is_unspecified() => Ipv6Addr::LOCALHOST,
        _ => address,
    };
    let rule = rules.iter().find(|rule| rule.matches(Some((peer, port)), 0));
    let action = rule.map_or(Action::Apply(reference.policy), |rule| rule.action);
    has = match action {
        Action::Apply(policy) if rules.is_empty() || reference.mode != Mode::Default => {
            given(&policy, &fresh, reference.mode == Mode::Floor && !rules.is_empty())
        }
        // Turning keepalive off is a setting of the program too, and stays.
        Action::Apply(policy) if has.enabled == 1 || !is_set[0] => with_unset_values(&policy, is_set, &has),
        _ => has,
    };
    assert_eq!(kernel::policy(fd), has, "to {to} by {action:?} in {:?}", reference.mode);

    // The policy that limits the program's calls. If a rule needs a peer or a local port, which an unbound socket does
    // not have yet, the base policy limits them.
    let open = rules.iter().any(|rule| rule.looks_at_peer() || rule.lport.is_some());
    let policy = if open {
        reference.policy
    } else if let Action::Apply(policy) = action {
        policy
    } else {
        reference.policy
    };
    let is_held = action != Action::Skip && reference.mode != Mode::Default;
    for _ in 0..input.byte() % 8 {
        let option = input.byte() % 6;
        let value = input.value();
        let wanted = allowed(option, value, &has, is_held.then_some(&policy), reference.mode);
        let answer = program_sets(fd, option, value);
        match wanted {
            Some(wanted) => (assert_eq!(answer, Ok(())), has = wanted).0,
            None => assert_eq!(answer, Err(libc::EINVAL)),
        }
        assert_eq!(kernel::policy(fd), has, "option {option} to {value} in {:?}", reference.mode);
    }
}

/// Returns the settings of a new socket after it got a policy. `fresh` has its settings before. With `keeps_stricter`,
/// stricter values of `fresh` stay: in mode floor with rules, the socket gets the policy only when it connects.
fn given(policy: &Policy, fresh: &Policy, keeps_stricter: bool) -> Policy {
    let mut has = policy.on(fresh);
    if keeps_stricter {
        // A value from a sysctl may be one that cannot be set on a socket. Only usable values count as stricter.
        for (value, before) in
            [(&mut has.idle, fresh.idle), (&mut has.intvl, fresh.intvl), (&mut has.cnt, fresh.cnt)]
        {
            *value = if before >= 1 { before.min(*value) } else { *value };
        }
    }
    if has.user_timeout == AUTO {
        has.user_timeout = has.automatic().unwrap();
    }
    has.rto_max = kernel::rto_max_after(fresh.rto_max, has.rto_max);
    has
}

/// Returns the settings of a socket after it got the values of a policy that its program has not set.
fn with_unset_values(policy: &Policy, is_set: [bool; 6], has: &Policy) -> Policy {
    let mut words = policy.words();
    for (word, _) in words.iter_mut().zip(is_set).skip(1).filter(|(_, is_set)| *is_set) {
        *word = KEEP;
    }
    let mut after = Policy::from_words(words).on(has);
    if after.user_timeout == AUTO {
        // An automatic user timeout that is too long is not set.
        after.user_timeout = after.automatic().unwrap_or(has.user_timeout);
    }
    after.rto_max = kernel::rto_max_after(has.rto_max, after.rto_max);
    after
}

/// Returns the settings of a socket after its program has set an option, or `None` for EINVAL.
fn allowed(option: u8, value: c_int, has: &Policy, held: Option<&Policy>, mode: Mode) -> Option<Policy> {
    let range = match option {
        0 => i32::MIN..=i32::MAX,
        1 | 2 => 1..=32767,
        3 => 1..=127,
        4 => 0..=i32::MAX,
        _ => 1000..=120_000,
    };
    if !range.contains(&value) {
        return None;
    }
    let mut after = *has;
    let slot = match option {
        0 => &mut after.enabled,
        1 => &mut after.idle,
        2 => &mut after.intvl,
        3 => &mut after.cnt,
        4 => &mut after.user_timeout,
        _ => &mut after.rto_max,
    };
    let value = match option {
        0 => i32::from(value != 0),
        5 => kernel::rounded_rto_max(value),
        _ => value,
    };
    let Some(policy) = held else {
        *slot = value;
        return Some(after);
    };
    match option {
        // The policy turns keepalive on.
        0 if value == 0 => {}
        0 => *slot = value,
        4 if policy.user_timeout != KEEP => {}
        4 => {
            let latest = Policy { user_timeout: AUTO, ..*policy }.automatic().unwrap_or(i32::MAX);
            *slot = value.min(latest);
        }
        5 if policy.rto_max == KEEP => *slot = value,
        5 => *slot = value.min(kernel::rounded_rto_max(policy.rto_max)),
        _ if mode == Mode::Floor => *slot = value.min(policy.words()[usize::from(option)]),
        _ => {}
    }
    Some(after)
}

/// Makes the program's setsockopt(2) call as the hook does.
fn program_sets(fd: c_int, option: u8, value: c_int) -> Result<(), c_int> {
    let (level, name) = match option {
        0 => (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
        1 => (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE),
        2 => (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL),
        3 => (libc::IPPROTO_TCP, libc::TCP_KEEPCNT),
        5 => (libc::IPPROTO_TCP, kernel::RTO_MAX),
        _ => (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
    };
    // SAFETY: the function accepts any arguments, and `value` has 4 bytes.
    match unsafe { shim::judge(fd, level, name, (&raw const value).cast(), 4) } {
        Decision::Make => kernel::set_option(fd, level, name, value),
        Decision::MakeAndFollowUp => {
            let result = kernel::set_option(fd, level, name, value);
            if result.is_ok() {
                shim::follow_up(fd, level, name);
            }
            result
        }
        Decision::Succeed => Ok(()),
        Decision::MakeWith(value) => kernel::set_option(fd, level, name, value),
    }
}

/// Takes a peer, or none.
fn connection(input: &mut Input<'_>) -> Option<(Ipv6Addr, u16)> {
    let address = match input.byte() % 6 {
        0 => return None,
        1 => Ipv6Addr::from_bits(u128::from_be_bytes(input.array())),
        2 => Ipv4Addr::from(input.array::<4>()).to_ipv6_mapped(),
        3 => Ipv4Addr::new(10, 0, input.byte() % 4, input.byte()).to_ipv6_mapped(),
        4 => input.one_of(&[
            Ipv6Addr::LOCALHOST,
            Ipv6Addr::UNSPECIFIED,
            Ipv4Addr::LOCALHOST.to_ipv6_mapped(),
            Ipv4Addr::UNSPECIFIED.to_ipv6_mapped(),
        ]),
        _ => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, input.short()),
    };
    let port = if input.byte() < 128 { input.one_of(&[22, 443, 5432, 8000, 65535]) } else { input.short() };
    Some((address, port))
}

fn sockaddr(to: SocketAddr) -> ([u8; 28], libc::socklen_t) {
    let mut bytes = [0; 28];
    let family = if to.is_ipv4() { 2_u16 } else { 10 };
    bytes[..2].copy_from_slice(&family.to_ne_bytes());
    bytes[2..4].copy_from_slice(&to.port().to_be_bytes());
    match to.ip() {
        IpAddr::V4(v4) => bytes[4..8].copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => bytes[8..24].copy_from_slice(&v6.octets()),
    }
    (bytes, if to.is_ipv4() { 16 } else { 28 })
}

/// Parses a network, and checks whether it contains an address.
fn check_address(input: &mut Input<'_>) {
    let text = input.text(64);
    let address = u128::from_be_bytes(input.array());
    // Test addresses near the network too, which random bytes would never hit.
    let network = std::str::from_utf8(text).ok().and_then(Network::parse);
    let near = text.split(|byte| *byte == b'/').next().and_then(|text| std::str::from_utf8(text).ok());
    let near = near.and_then(|text| text.parse::<IpAddr>().ok()).map_or(0, |address| match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    });
    let flipped = near ^ 1_u128 << (address % 128);
    let found = Cidr::parse(text);
    assert_eq!(found.is_some(), network.is_some(), "{}", text.escape_ascii());
    if let (Some(found), Some(network)) = (found, network) {
        for address in [address, near, flipped, address & u128::from(u32::MAX) | 0xffff_0000_0000] {
            let expected = network.contains(Ipv6Addr::from_bits(address));
            assert_eq!(found.contains(address), expected, "{network:?} {address:x}");
        }
    }
}

/// Returns whether this machine has a file that the shim would read. Then its results differ.
fn has_conf() -> bool {
    thread_local!(static FOUND: Cell<Option<bool>> = const { Cell::new(None) });
    FOUND.get().unwrap_or_else(|| {
        let path = Path::new(OsStr::from_bytes(ka_policy::CONF.to_bytes()));
        let is_there = path.exists();
        if is_there {
            eprintln!("shim: this machine has {}, so the shim's variables are not compared", path.display());
        }
        FOUND.set(Some(is_there));
        is_there
    })
}

/// Returns the names that the shim compares with KA_SKIP.
fn own_names() -> [Vec<u8>; 2] {
    let base = |path: &Path| path.file_name().unwrap_or_default().as_bytes().to_vec();
    [
        base(Path::new(&std::env::args_os().next().unwrap())),
        base(&std::fs::read_link("/proc/self/exe").unwrap()),
    ]
}

/// Makes the shim read its variables in this environment. Returns the shim that the hooks would use, and its output.
fn read(environment: &[Entry]) -> (Option<&'static Shim>, Vec<u8>) {
    unsafe extern "C" {
        static mut environ: *const *const c_char;
    }
    let strings: Vec<CString> = environment
        .iter()
        .map(|(name, value)| CString::new([name, b"=".as_slice(), value].concat()).unwrap())
        .collect();
    let pointers: Vec<*const c_char> =
        strings.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect();
    let listener = Listener::begin();
    // SAFETY: there is one thread. The environment is restored, and the shim keeps no pointers into it: it copies the
    // values that it uses later. `read` reuses the memory of an earlier shim, which is no longer used.
    let found = unsafe {
        let before = environ;
        environ = pointers.as_ptr();
        let found = shim::read();
        environ = before;
        found
    };
    let printed = listener.end();
    // SAFETY: only this thread reads it, and not while it is written.
    let found = found.map(|found| unsafe {
        shim::publish(found);
        shim::active().unwrap()
    });
    (found, printed)
}

/// Redirects standard error, to read it.
struct Listener;

thread_local! {
    /// The old standard error, and the file that replaces it.
    static ENDS: RefCell<Option<(OwnedFd, OwnedFd)>> = const { RefCell::new(None) };
}

impl Listener {
    fn begin() -> Self {
        ENDS.with_borrow_mut(|ends| {
            let (_, meanwhile) = ends.get_or_insert_with(|| {
                // Restore standard error before a panic prints its message.
                let usual = panic::take_hook();
                panic::set_hook(Box::new(move |panic| {
                    Self::restore();
                    usual(panic);
                }));
                // SAFETY: the descriptors are new, and nothing else owns them.
                unsafe {
                    let flags = libc::MFD_CLOEXEC;
                    let [before, meanwhile] =
                        [libc::dup(2), libc::memfd_create(c"standard error".as_ptr(), flags)];
                    assert!(before >= 0 && meanwhile >= 0);
                    (OwnedFd::from_raw_fd(before), OwnedFd::from_raw_fd(meanwhile))
                }
            });
            let fd = meanwhile.as_raw_fd();
            // SAFETY: the calls take no pointer.
            unsafe {
                libc::ftruncate(fd, 0);
                libc::lseek(fd, 0, libc::SEEK_SET);
                libc::dup2(fd, 2);
            }
        });
        Self
    }

    fn restore() {
        ENDS.with(|ends| {
            if let Ok(ends) = ends.try_borrow()
                && let Some((before, _)) = &*ends
            {
                // SAFETY: the call takes no pointer.
                unsafe { libc::dup2(before.as_raw_fd(), 2) };
            }
        });
    }

    /// Restores standard error. Returns the text that was written.
    fn end(self) -> Vec<u8> {
        Self::restore();
        ENDS.with_borrow(|ends| {
            let fd = ends.as_ref().unwrap().1.as_raw_fd();
            // SAFETY: the size is that of the buffer.
            unsafe {
                let size = usize::try_from(libc::lseek(fd, 0, libc::SEEK_END)).unwrap();
                let mut printed = vec![0; size];
                assert_eq!(libc::pread(fd, printed.as_mut_ptr().cast(), size, 0).cast_unsigned(), size);
                printed
            }
        })
    }
}
