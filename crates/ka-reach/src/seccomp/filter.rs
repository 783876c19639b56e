//! The filters: which calls wait for the supervisor, and which are answered by the kernel itself. seccomp(2)
//!
//! seccompiler puts the comparisons together. It knows no user notification, so its filter says TRACE where ours is
//! to say USER_NOTIF. And it kills whatever makes a call of another architecture, so ours looks at the architecture
//! before it does: such a call is let through, and the supervisor hears of those that would have been for it.

use std::collections::BTreeMap;
use std::env::consts::ARCH;

use ka_core::SockOpt;
use ka_policy::Mode;
use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};

/// An architecture whose programs this kernel runs too, if it was built so.
pub(super) struct Foreign {
    pub(super) name: &'static str,
    /// `AUDIT_ARCH_*` of linux/audit.h
    arch: u32,
    /// connect(2) and listen(2).
    calls: &'static [u32],
    /// socketcall(2), where all socket calls are one, with its kind as the first argument.
    pub(super) socketcall: Option<u32>,
}

impl Foreign {
    /// The other architecture that programs of this kernel may have.
    pub(super) const fn here() -> Self {
        if cfg!(target_arch = "aarch64") {
            Self { name: "32-bit ARM", arch: 0x4000_0028, calls: &[283, 284], socketcall: None }
        } else if cfg!(target_arch = "riscv64") {
            Self { name: "32-bit RISC-V", arch: 0x4000_00f3, calls: &[203, 201], socketcall: None }
        } else {
            Self { name: "i386", arch: 0x4000_0003, calls: &[362, 363], socketcall: Some(102) }
        }
    }

    /// Whether it is this one.
    pub(super) const fn is(&self, arch: u32) -> bool {
        self.arch == arch
    }
}

/// What `SYS_CONNECT` and `SYS_LISTEN` are to socketcall(2).
const SOCKETCALLS: [u32; 2] = [3, 4];

/// Calls of x32 are calls of x86_64 with this bit.
pub(super) const X32: c_long = 0x4000_0000;

/// The filters of a program.
pub(super) struct Filters {
    /// Those that answer by themselves.
    pub(super) plain: Vec<BpfProgram>,
    /// The one whose calls the supervisor answers.
    pub(super) listener: BpfProgram,
}

impl Filters {
    /// Returns the filters for a mode. `no_rings` denies io_uring.
    pub(super) fn new(mode: Mode, no_rings: bool) -> Result<Self, String> {
        let mut plain = Vec::new();
        if no_rings {
            let rules = BTreeMap::from([(libc::SYS_io_uring_setup, Vec::new())]);
            plain.push(answering(rules, libc::ENOSYS)?);
        }
        let fast_open = |argument| -> Result<_, String> {
            let flag = u64::from(libc::MSG_FASTOPEN.cast_unsigned());
            let is_there = condition(argument, SeccompCmpOp::MaskedEq(flag), flag)?;
            Ok(vec![SeccompRule::new(vec![is_there]).map_err(said)?])
        };
        // No condition: always.
        let mut watched = BTreeMap::from([
            (libc::SYS_connect, Vec::new()),
            (libc::SYS_listen, Vec::new()),
            (libc::SYS_sendto, fast_open(3)?),
            (libc::SYS_sendmsg, fast_open(2)?),
            (libc::SYS_sendmmsg, fast_open(3)?),
        ]);
        if cfg!(target_arch = "x86_64") {
            watched.insert(libc::SYS_connect | X32, Vec::new());
            watched.insert(libc::SYS_listen | X32, Vec::new());
        }
        if mode != Mode::Default {
            watched.insert(libc::SYS_setsockopt, options(&SockOpt::ALL)?);
        }
        if !no_rings {
            watched.insert(libc::SYS_io_uring_setup, Vec::new());
        }
        Ok(Self { plain, listener: notifying(watched)? })
    }

    /// The least that has a listener.
    pub(super) fn trial() -> Result<BpfProgram, String> {
        notifying(BTreeMap::from([(libc::SYS_listen, Vec::new())]))
    }
}

/// Whether there are filters for this machine.
pub(super) fn architecture() -> Result<TargetArch, String> {
    TargetArch::try_from(ARCH).map_err(|_| format!("there are no seccomp filters for {ARCH} here"))
}

fn said(error: impl std::fmt::Display) -> String {
    format!("seccomp: {error}")
}

/// What is asked of an argument, of which the kernel takes 32 bits.
fn condition(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompCondition, String> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value).map_err(said)
}

/// setsockopt(2) of any of these options.
fn options(options: &[SockOpt]) -> Result<Vec<SeccompRule>, String> {
    let rule = |option: &SockOpt| {
        let (level, name) = option.level_and_name();
        let equals =
            |argument, value: i32| condition(argument, SeccompCmpOp::Eq, u64::from(value.cast_unsigned()));
        SeccompRule::new(vec![equals(1, level)?, equals(2, name)?]).map_err(said)
    };
    options.iter().map(rule).collect()
}

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

fn compiled(rules: Rules, action: SeccompAction) -> Result<BpfProgram, String> {
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, action, architecture()?).map_err(said)?;
    filter.try_into().map_err(said)
}

/// A filter that makes these calls fail with an errno.
fn answering(rules: Rules, errno: i32) -> Result<BpfProgram, String> {
    let program = compiled(rules, SeccompAction::Errno(errno.cast_unsigned()))?;
    Ok([for_others(&[]), program].concat())
}

/// A filter that makes these calls wait for the supervisor.
fn notifying(rules: Rules) -> Result<BpfProgram, String> {
    let mut program = compiled(rules, SeccompAction::Trace(0))?;
    for instruction in &mut program {
        if instruction.code == RETURN && instruction.k == libc::SECCOMP_RET_TRACE {
            instruction.k = libc::SECCOMP_RET_USER_NOTIF;
        }
    }
    Ok([for_others(&[Foreign::here()]), program].concat())
}

// What a filter is made of: linux/bpf_common.h, and struct seccomp_data of linux/seccomp.h.
#[expect(clippy::cast_possible_truncation, reason = "they fit")]
const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
#[expect(clippy::cast_possible_truncation, reason = "they fit")]
const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
#[expect(clippy::cast_possible_truncation, reason = "they fit")]
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;

/// What comes before a filter: calls of other architectures do not get to it.
///
/// Where an instruction jumps to is so many instructions behind the next.
fn for_others(foreign: &[Foreign]) -> BpfProgram {
    let load = |k| sock_filter { code: LOAD, jt: 0, jf: 0, k };
    let give = |k| sock_filter { code: RETURN, jt: 0, jf: 0, k };
    let jump = |k, jt, jf| sock_filter { code: JUMP_IF_EQUAL, jt, jf, k };
    let mut program = Vec::new();
    for Foreign { arch, calls, socketcall, .. } in foreign {
        // if (arch == foreign) {
        //     if (nr is one of calls) return USER_NOTIF;
        //     if (nr == socketcall && args[0] is one of SOCKETCALLS) return USER_NOTIF;
        //     return ALLOW;
        // }
        let mut inner = vec![load(NUMBER)];
        for call in *calls {
            inner.extend([jump(*call, 0, 1), give(libc::SECCOMP_RET_USER_NOTIF)]);
        }
        if let Some(socketcall) = socketcall {
            let kinds =
                SOCKETCALLS.map(|kind| [jump(kind, 0, 1), give(libc::SECCOMP_RET_USER_NOTIF)]).concat();
            let skipped = u8::try_from(kinds.len()).unwrap_or(u8::MAX).saturating_add(1);
            inner.extend([jump(*socketcall, 0, skipped), load(FIRST_ARGUMENT)]);
            inner.extend(kinds);
        }
        inner.push(give(libc::SECCOMP_RET_ALLOW));
        program.push(jump(*arch, 0, u8::try_from(inner.len()).unwrap_or(u8::MAX)));
        program.extend(inner);
    }
    program.push(give(libc::SECCOMP_RET_ALLOW));
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
#[expect(clippy::indexing_slicing, reason = "a filter that is wrong is to fail the test")]
mod tests {
    use ka_core::SockOpt;
    use ka_policy::Mode;
    use libc::{
        SECCOMP_RET_ALLOW as ALLOW, SECCOMP_RET_ERRNO as ERRNO, SECCOMP_RET_USER_NOTIF as NOTIFY, c_long,
    };
    use seccompiler::sock_filter;

    use super::{Filters, Foreign, X32, architecture, audit_number};

    /// What a filter answers: the few instructions of classic BPF that ours have.
    fn answer(filter: &[sock_filter], arch: u32, number: c_long, arguments: [u64; 6]) -> u32 {
        // struct seccomp_data; all that it runs on have the low half first.
        let mut data = u32::try_from(number).unwrap().to_ne_bytes().to_vec();
        data.extend(arch.to_ne_bytes());
        data.extend([0; 8]);
        data.extend(arguments.into_iter().flat_map(u64::to_ne_bytes));
        let (mut accumulator, mut place) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = filter[place];
            place += 1;
            let jump = |is_so: bool| usize::from(if is_so { jt } else { jf });
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

    /// Of all filters: the kernel takes the strictest answer, which here is the first that is none.
    fn fate(filters: &Filters, arch: u32, number: c_long, arguments: [u64; 6]) -> u32 {
        let each = filters.plain.iter().chain([&filters.listener]);
        each.map(|filter| answer(filter, arch, number, arguments))
            .find(|answer| *answer != ALLOW)
            .unwrap_or(ALLOW)
    }

    #[test]
    fn who_waits_and_who_does_not() {
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
            let judged = if mode == Mode::Default { ALLOW } else { NOTIFY };
            for no_rings in [false, true] {
                let filters = Filters::new(mode, no_rings).unwrap();
                let own = |number, arguments| fate(&filters, own, number, arguments);
                for number in [libc::SYS_connect, libc::SYS_listen] {
                    assert_eq!(own(number, [3; 6]), NOTIFY);
                }
                for (number, flags) in
                    [(libc::SYS_sendto, 3), (libc::SYS_sendmsg, 2), (libc::SYS_sendmmsg, 3)]
                {
                    assert_eq!(own(number, fast(flags)), NOTIFY);
                    assert_eq!(own(number, fast(flags + 1)), ALLOW);
                }
                // Of the upper halves of arguments the kernel takes no notice.
                for upper in [0, 0xdead << 32] {
                    let set = |level, name| own(libc::SYS_setsockopt, option(level, name, upper));
                    for option in SockOpt::ALL {
                        let (level, name) = option.level_and_name();
                        assert_eq!(set(level, name), judged, "{option}");
                    }
                    assert_eq!(set(libc::SOL_SOCKET, libc::TCP_KEEPIDLE), ALLOW);
                    assert_eq!(set(libc::IPPROTO_TCP, libc::TCP_NODELAY), ALLOW);
                }
                let ring = if no_rings { ERRNO | libc::ENOSYS.unsigned_abs() } else { NOTIFY };
                assert_eq!(own(libc::SYS_io_uring_setup, [0; 6]), ring);
                for number in [libc::SYS_socket, libc::SYS_accept4, libc::SYS_close, libc::SYS_getsockopt] {
                    assert_eq!(own(number, [3; 6]), ALLOW);
                }
            }
        }
    }

    #[test]
    fn calls_of_other_architectures_are_let_through_and_told() {
        let filters = Filters::new(Mode::Force, true).unwrap();
        let foreign = Foreign::here();
        let theirs = |number: u32, first| fate(&filters, foreign.arch, number.into(), [first, 0, 0, 0, 0, 0]);
        for call in foreign.calls {
            assert_eq!(theirs(*call, 3), NOTIFY);
        }
        if let Some(socketcall) = foreign.socketcall {
            // SYS_SOCKET, SYS_CONNECT, SYS_LISTEN, SYS_ACCEPT
            assert_eq!([1, 3, 4, 5].map(|kind| theirs(socketcall, kind)), [ALLOW, NOTIFY, NOTIFY, ALLOW]);
        }
        assert_eq!(theirs(1, 0), ALLOW);
        // Of one that nobody knows, all; of x32, the same as of x86_64.
        assert_eq!(fate(&filters, 0x1234, libc::SYS_connect, [0; 6]), ALLOW);
        if cfg!(target_arch = "x86_64") {
            let own = audit_number(architecture().unwrap());
            assert_eq!(fate(&filters, own, libc::SYS_connect | X32, [0; 6]), NOTIFY);
        }
    }
}
