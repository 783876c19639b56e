//! Seccomp filters, which decide which system calls wait for the supervisor. seccomp(2)
//!
//! A filter is a program in classic BPF. The kernel runs it before each system call. The filter sees the architecture,
//! the number of the call, and the argument registers, but no memory of the program. It returns an action: allow the
//! call, make it fail, or suspend it until the supervisor answers.
//!
//! The seccompiler crate generates the comparisons of arguments. ka changes its filters in two ways:
//!
//! - seccompiler does not know the action USER_NOTIF. So ka generates filters with TRACE, and replaces TRACE by
//!   USER_NOTIF.
//! - seccompiler's filters kill a process that makes a call of another architecture. So ka puts its own check of the
//!   architecture first. This check allows such calls, but suspends connect and listen.

use std::collections::BTreeMap;
use std::env::consts::ARCH;

use ka_core::SockOpt;
use ka_policy::Mode;
use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};

use crate::{Error, Result};

/// A 32-bit architecture. A 64-bit kernel that was built with support for it also runs its programs.
pub(super) struct CompatArch {
    pub(super) name: &'static str,
    /// `AUDIT_ARCH_*` of linux/audit.h
    arch: u32,
    /// The numbers of connect(2) and listen(2).
    calls: &'static [u32],
    /// The number of socketcall(2), if the architecture has it. Its first argument selects the socket call.
    pub(super) socketcall: Option<u32>,
}

impl CompatArch {
    /// Returns the 32-bit architecture of this machine.
    pub(super) const fn of_this_machine() -> Self {
        if cfg!(target_arch = "aarch64") {
            Self { name: "32-bit ARM", arch: 0x4000_0028, calls: &[283, 284], socketcall: None }
        } else if cfg!(target_arch = "riscv64") {
            Self { name: "32-bit RISC-V", arch: 0x4000_00f3, calls: &[203, 201], socketcall: None }
        } else {
            Self { name: "i386", arch: 0x4000_0003, calls: &[362, 363], socketcall: Some(102) }
        }
    }

    /// Returns whether this is the architecture with this `AUDIT_ARCH_*` number.
    pub(super) const fn is(&self, arch: u32) -> bool {
        self.arch == arch
    }
}

/// `SYS_CONNECT` and `SYS_LISTEN`: the first argument of socketcall(2). linux/net.h
const SOCKETCALLS: [u32; 2] = [3, 4];

/// The bit of an x86_64 system call number that marks an x32 call. `__X32_SYSCALL_BIT`
pub(super) const X32: c_long = 0x4000_0000;

/// The filters of a program.
pub(super) struct Filters {
    /// Filters that deny calls.
    pub(super) plain: Vec<BpfProgram>,
    /// The filter that suspends calls until the supervisor answers them.
    pub(super) listener: BpfProgram,
}

impl Filters {
    /// Returns the filters for a mode. `denies_io_uring` makes io_uring_setup(2) fail with ENOSYS.
    pub(super) fn new(mode: Mode, denies_io_uring: bool) -> Result<Self> {
        let mut plain = Vec::new();
        if denies_io_uring {
            let rules = BTreeMap::from([(libc::SYS_io_uring_setup, Vec::new())]);
            plain.push(denying(rules, libc::ENOSYS)?);
        }
        let fast_open = |argument| -> Result<_> {
            let flag = u64::from(libc::MSG_FASTOPEN.cast_unsigned());
            Ok(vec![rule(vec![condition(argument, SeccompCmpOp::MaskedEq(flag), flag)?])?])
        };
        // An empty list means that all calls match.
        let mut suspended = BTreeMap::from([
            (libc::SYS_connect, Vec::new()),
            (libc::SYS_listen, Vec::new()),
            (libc::SYS_sendto, fast_open(3)?),
            (libc::SYS_sendmsg, fast_open(2)?),
            (libc::SYS_sendmmsg, fast_open(3)?),
        ]);
        if cfg!(target_arch = "x86_64") {
            suspended.insert(libc::SYS_connect | X32, Vec::new());
            suspended.insert(libc::SYS_listen | X32, Vec::new());
        }
        if mode != Mode::Default {
            suspended.insert(libc::SYS_setsockopt, setsockopt_rules(&SockOpt::ALL)?);
        }
        if !denies_io_uring {
            suspended.insert(libc::SYS_io_uring_setup, Vec::new());
        }
        Ok(Self { plain, listener: suspending(suspended)? })
    }

    /// Returns a filter with which to test whether the kernel supports listeners. It suspends listen(2).
    pub(super) fn trial() -> Result<BpfProgram> {
        suspending(BTreeMap::from([(libc::SYS_listen, Vec::new())]))
    }
}

/// Returns seccompiler's name of this machine's architecture.
pub(super) fn architecture() -> Result<TargetArch> {
    TargetArch::try_from(ARCH).map_err(|_| Error::NoFilters(ARCH))
}

/// Returns a condition on the low 32 bits of an argument. The kernel ignores the other bits of the arguments that the
/// filters check.
fn condition(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompCondition> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value).map_err(Error::Filter)
}

/// Returns a rule that matches if all conditions hold.
fn rule(conditions: Vec<SeccompCondition>) -> Result<SeccompRule> {
    SeccompRule::new(conditions).map_err(Error::Filter)
}

/// Returns rules that match setsockopt(2) of any of these options.
fn setsockopt_rules(options: &[SockOpt]) -> Result<Vec<SeccompRule>> {
    let rule = |option: &SockOpt| {
        let (level, name) = option.level_and_name();
        let equals =
            |argument, value: i32| condition(argument, SeccompCmpOp::Eq, u64::from(value.cast_unsigned()));
        rule(vec![equals(1, level)?, equals(2, name)?])
    };
    options.iter().map(rule).collect()
}

type SyscallRules = BTreeMap<c_long, Vec<SeccompRule>>;

/// Returns a filter that takes `action` for calls that match a rule, and allows all others.
fn compile(rules: SyscallRules, action: SeccompAction) -> Result<BpfProgram> {
    let filter =
        SeccompFilter::new(rules, SeccompAction::Allow, action, architecture()?).map_err(Error::Filter)?;
    filter.try_into().map_err(Error::Filter)
}

/// Returns a filter that makes these calls fail with an errno.
fn denying(rules: SyscallRules, errno: i32) -> Result<BpfProgram> {
    let program = compile(rules, SeccompAction::Errno(errno.cast_unsigned()))?;
    Ok([architecture_check(&[]), program].concat())
}

/// Returns a filter that suspends these calls until the supervisor answers them.
fn suspending(rules: SyscallRules) -> Result<BpfProgram> {
    let mut program = compile(rules, SeccompAction::Trace(0))?;
    for instruction in &mut program {
        if instruction.code == RETURN && instruction.k == libc::SECCOMP_RET_TRACE {
            instruction.k = libc::SECCOMP_RET_USER_NOTIF;
        }
    }
    Ok([architecture_check(&[CompatArch::of_this_machine()]), program].concat())
}

// Instructions (linux/bpf_common.h), and the offsets of fields in struct seccomp_data (linux/seccomp.h).
#[expect(clippy::cast_possible_truncation, reason = "they fit")]
const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
#[expect(clippy::cast_possible_truncation, reason = "they fit")]
const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
#[expect(clippy::cast_possible_truncation, reason = "they fit")]
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;

/// Returns the instructions that precede a filter. They handle calls of all architectures but this machine's: they
/// suspend connect and listen of the `compat` architectures, and allow all other calls.
///
/// Jump offsets count from the next instruction.
fn architecture_check(compat: &[CompatArch]) -> BpfProgram {
    let load = |k| sock_filter { code: LOAD, jt: 0, jf: 0, k };
    let ret = |k| sock_filter { code: RETURN, jt: 0, jf: 0, k };
    let jump = |k, jt, jf| sock_filter { code: JUMP_IF_EQUAL, jt, jf, k };
    let mut program = Vec::new();
    for CompatArch { arch, calls, socketcall, .. } in compat {
        // if (arch == compat) {
        //     if (nr is one of calls) return USER_NOTIF;
        //     if (nr == socketcall && args[0] is one of SOCKETCALLS) return USER_NOTIF;
        //     return ALLOW;
        // }
        let mut inner = vec![load(NUMBER)];
        for call in *calls {
            inner.extend([jump(*call, 0, 1), ret(libc::SECCOMP_RET_USER_NOTIF)]);
        }
        if let Some(socketcall) = socketcall {
            let kinds =
                SOCKETCALLS.map(|kind| [jump(kind, 0, 1), ret(libc::SECCOMP_RET_USER_NOTIF)]).concat();
            let skipped = u8::try_from(kinds.len()).unwrap_or(u8::MAX).saturating_add(1);
            inner.extend([jump(*socketcall, 0, skipped), load(FIRST_ARGUMENT)]);
            inner.extend(kinds);
        }
        inner.push(ret(libc::SECCOMP_RET_ALLOW));
        program.push(jump(*arch, 0, u8::try_from(inner.len()).unwrap_or(u8::MAX)));
        program.extend(inner);
    }
    program.push(ret(libc::SECCOMP_RET_ALLOW));
    let own = architecture().map_or(0, audit_number);
    let skipped = u8::try_from(program.len()).unwrap_or(u8::MAX);
    // arch = data->arch; if (arch == own) goto the filter;
    [vec![load(ARCHITECTURE), jump(own, skipped, 0)], program].concat()
}

/// `AUDIT_ARCH_*` of linux/audit.h
const fn audit_number(architecture: TargetArch) -> u32 {
    match architecture {
        TargetArch::x86_64 => 0xc000_003e,
        TargetArch::aarch64 => 0xc000_00b7,
        TargetArch::riscv64 => 0xc000_00f3,
    }
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a wrong filter must fail the test")]
mod tests {
    use ka_core::SockOpt;
    use ka_policy::Mode;
    use libc::{
        SECCOMP_RET_ALLOW as ALLOW, SECCOMP_RET_ERRNO as ERRNO, SECCOMP_RET_USER_NOTIF as NOTIFY, c_long,
    };
    use seccompiler::sock_filter;

    use super::{CompatArch, Filters, X32, architecture, audit_number};

    /// Interprets a filter. Supports only the instructions of classic BPF that these filters contain.
    fn run(filter: &[sock_filter], arch: u32, number: c_long, arguments: [u64; 6]) -> u32 {
        // struct seccomp_data. All supported machines are little-endian, so the low half of an argument comes first.
        let mut data = u32::try_from(number).unwrap().to_ne_bytes().to_vec();
        data.extend(arch.to_ne_bytes());
        data.extend([0; 8]);
        data.extend(arguments.into_iter().flat_map(u64::to_ne_bytes));
        let (mut accumulator, mut place) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = filter[place];
            place += 1;
            let jump = |is_true: bool| usize::from(if is_true { jt } else { jf });
            match code {
                // ld [k]; and #k
                0x20 => {
                    let k = k as usize;
                    accumulator = u32::from_ne_bytes(data[k..k + 4].try_into().unwrap());
                }
                0x54 => accumulator &= k,
                // ja; jeq, jgt, jge #k
                0x05 => place += k as usize,
                0x15 => place += jump(accumulator == k),
                0x25 => place += jump(accumulator > k),
                0x35 => place += jump(accumulator >= k),
                // ret #k
                0x06 => return k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    /// Runs all filters. The kernel takes the strictest action, which here is the first one that is not ALLOW.
    fn action(filters: &Filters, arch: u32, number: c_long, arguments: [u64; 6]) -> u32 {
        let each = filters.plain.iter().chain([&filters.listener]);
        each.map(|filter| run(filter, arch, number, arguments))
            .find(|action| *action != ALLOW)
            .unwrap_or(ALLOW)
    }

    #[test]
    fn calls_that_concern_the_policy_are_suspended() {
        let own = audit_number(architecture().unwrap());
        let option = |level: i32, name: i32, upper: u64| {
            [3, level.unsigned_abs().into(), name.unsigned_abs().into(), 0, 4, 0]
                .map(|argument: u64| argument | upper)
        };
        let fast = |place: usize| {
            let mut arguments = [0; 6];
            arguments[place] = u64::from((libc::MSG_FASTOPEN | libc::MSG_NOSIGNAL).unsigned_abs());
            arguments
        };
        for mode in Mode::ALL {
            let expected = if mode == Mode::Default { ALLOW } else { NOTIFY };
            for denies_io_uring in [false, true] {
                let filters = Filters::new(mode, denies_io_uring).unwrap();
                let own = |number, arguments| action(&filters, own, number, arguments);
                for number in [libc::SYS_connect, libc::SYS_listen] {
                    assert_eq!(own(number, [3; 6]), NOTIFY);
                }
                for (number, flags) in
                    [(libc::SYS_sendto, 3), (libc::SYS_sendmsg, 2), (libc::SYS_sendmmsg, 3)]
                {
                    assert_eq!(own(number, fast(flags)), NOTIFY);
                    assert_eq!(own(number, fast(flags + 1)), ALLOW);
                }
                // The kernel ignores the upper halves of these arguments.
                for upper in [0, 0xdead << 32] {
                    let set = |level, name| own(libc::SYS_setsockopt, option(level, name, upper));
                    for option in SockOpt::ALL {
                        let (level, name) = option.level_and_name();
                        assert_eq!(set(level, name), expected, "{option}");
                    }
                    assert_eq!(set(libc::SOL_SOCKET, libc::TCP_KEEPIDLE), ALLOW);
                    assert_eq!(set(libc::IPPROTO_TCP, libc::TCP_NODELAY), ALLOW);
                }
                let ring = if denies_io_uring { ERRNO | libc::ENOSYS.unsigned_abs() } else { NOTIFY };
                assert_eq!(own(libc::SYS_io_uring_setup, [0; 6]), ring);
                for number in [libc::SYS_socket, libc::SYS_accept4, libc::SYS_close, libc::SYS_getsockopt] {
                    assert_eq!(own(number, [3; 6]), ALLOW);
                }
            }
        }
    }

    #[test]
    fn calls_of_other_architectures_are_allowed_or_suspended() {
        let filters = Filters::new(Mode::Force, true).unwrap();
        let compat = CompatArch::of_this_machine();
        let theirs =
            |number: u32, first| action(&filters, compat.arch, number.into(), [first, 0, 0, 0, 0, 0]);
        for call in compat.calls {
            assert_eq!(theirs(*call, 3), NOTIFY);
        }
        if let Some(socketcall) = compat.socketcall {
            // SYS_SOCKET, SYS_CONNECT, SYS_LISTEN, SYS_ACCEPT
            assert_eq!([1, 3, 4, 5].map(|kind| theirs(socketcall, kind)), [ALLOW, NOTIFY, NOTIFY, ALLOW]);
        }
        assert_eq!(theirs(1, 0), ALLOW);
        // All calls of an unknown architecture are allowed. x32 is treated as x86_64.
        assert_eq!(action(&filters, 0x1234, libc::SYS_connect, [0; 6]), ALLOW);
        if cfg!(target_arch = "x86_64") {
            let own = audit_number(architecture().unwrap());
            assert_eq!(action(&filters, own, libc::SYS_connect | X32, [0; 6]), NOTIFY);
        }
    }
}
