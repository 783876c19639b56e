//! The `setsockopt` program of a cgroup. In mode force, it keeps applications from replacing the policy's values.
//!
//! The kernel runs it before its own setsockopt, with a copy of the value. The program can change the value, reject the
//! call, or make it succeed without effect.

use ka_core::{Config, SockOpt, Timer};
use ka_policy::{Mode, Verdict, judge};

use super::insn::{Assembler, Cond, Insn, Reg, Size};

/// Offsets in `struct bpf_sockopt`.
mod sockopt {
    pub(super) const SK: i16 = 0;
    pub(super) const OPTVAL: i16 = 8;
    pub(super) const OPTVAL_END: i16 = 16;
    pub(super) const LEVEL: i16 = 24;
    pub(super) const OPTNAME: i16 = 28;
    pub(super) const OPTLEN: i16 = 32;
}

/// Offsets in `struct bpf_sock`.
mod sock {
    pub(super) const TYPE: i16 = 8;
    pub(super) const PROTOCOL: i16 = 12;
}

/// Returns the program, of attach type `BPF_CGROUP_SETSOCKOPT`: the verdicts of [`judge`] as instructions. A test
/// compares both on the running kernel. `page` is the size of a memory page in bytes.
///
/// If a value is longer than a page, as the tables of iptables are, the BPF program sees only its first page. The
/// program must then set the length to 0, so that the kernel uses the application's own value. Otherwise Linux 5.8 to
/// 6.4 reject the call with EFAULT, and later kernels log a message. Documentation/bpf/prog_cgroup_sockopt.rst
pub(super) fn setsockopt(config: &Config, mode: Mode, page: i32) -> Vec<Insn> {
    use Reg::{R0, R1, R2, R3, R4, R6};

    let mut program = Assembler::default();
    let [pass, tcp, value, keepalive, ignore] = std::array::from_fn(|_| program.label());
    let timers = Timer::ALL;
    let cases = timers.map(|timer| (timer, program.label()));
    // struct bpf_sockopt *call = context;
    program.mov(R6, R1);
    // if (call->level == SOL_SOCKET) { if (call->optname != SO_KEEPALIVE) goto pass; }
    let (socket_level, on) = SockOpt::KeepAlive.level_and_name();
    program.load(Size::Word, R1, R6, sockopt::LEVEL);
    program.load(Size::Word, R2, R6, sockopt::OPTNAME);
    program.jump_if(R1, Cond::NotEqual, socket_level, tcp);
    program.jump_if(R2, Cond::Equal, on, value);
    program.jump(pass);
    // else if (call->level != IPPROTO_TCP || call->optname is not a timer) goto pass;
    program.place(tcp);
    program.jump_if(R1, Cond::NotEqual, libc::IPPROTO_TCP, pass);
    for timer in timers {
        program.jump_if(R2, Cond::Equal, SockOpt::Timer(timer).level_and_name().1, value);
    }
    program.jump(pass);
    // if (call->sk->type != SOCK_STREAM || protocol is neither TCP nor Multipath TCP) goto pass;
    program.place(value);
    let stream = program.label();
    program.load(Size::Double, R3, R6, sockopt::SK);
    program.load(Size::Word, R4, R3, sock::TYPE);
    program.jump_if(R4, Cond::NotEqual, libc::SOCK_STREAM, pass);
    program.load(Size::Word, R4, R3, sock::PROTOCOL);
    program.jump_if(R4, Cond::Equal, libc::IPPROTO_TCP, stream);
    program.jump_if(R4, Cond::NotEqual, libc::IPPROTO_MPTCP, pass);
    program.place(stream);
    // if (call->optlen < 4 || call->optval + 4 > call->optval_end) goto pass;
    program.load(Size::Word, R3, R6, sockopt::OPTLEN);
    program.jump_if(R3, Cond::Less, 4, pass);
    program.load(Size::Double, R3, R6, sockopt::OPTVAL);
    program.load(Size::Double, R4, R6, sockopt::OPTVAL_END);
    program.mov(R0, R3);
    program.add(R0, 4);
    program.jump_if_above(R0, R4, pass);
    // int value = *(int *)call->optval; switch (call->optname)
    program.load(Size::Word, R0, R3, 0);
    program.jump_if(R1, Cond::Equal, socket_level, keepalive);
    for (timer, case) in cases {
        program.jump_if(R2, Cond::Equal, SockOpt::Timer(timer).level_and_name().1, case);
    }
    program.jump(pass);
    for (timer, case) in cases {
        program.place(case);
        // if (value is out of range) goto pass;
        let range = timer.range();
        program.jump_if(R0, Cond::Less, *range.start(), pass);
        program.jump_if(R0, Cond::Greater, *range.end(), pass);
        // The verdict on the largest value tells the rule: all values are ignored, or those above a limit are clamped.
        match judge(mode, config, SockOpt::Timer(timer), *range.end()) {
            Verdict::Pass | Verdict::Reject => program.jump(pass),
            Verdict::Ignore => {
                // The policy's own value passes, because `ka attach` sets it with setsockopt(2) on a duplicated
                // descriptor.
                if let Some(named) = config.timer(timer) {
                    program.jump_if(R0, Cond::Equal, named, pass);
                }
                program.jump(ignore);
            }
            Verdict::Clamp(limit) => {
                // if (value > limit) { *(int *)call->optval = limit; call->optlen = 4; } goto pass;
                program.jump_if(R0, Cond::LessOrEqual, limit, pass);
                program.store(Size::Word, R3, 0, limit);
                program.mov(R0, 4);
                program.store(Size::Word, R6, sockopt::OPTLEN, R0);
                program.jump(pass);
            }
        }
    }
    program.place(keepalive);
    match judge(mode, config, SockOpt::KeepAlive, 0) {
        Verdict::Ignore => program.jump_if(R0, Cond::NotEqual, 0, pass),
        Verdict::Pass | Verdict::Reject | Verdict::Clamp(_) => program.jump(pass),
    }
    // call->optlen = -1: the application's call succeeds, and the kernel skips its own setsockopt.
    program.place(ignore);
    program.mov(R0, -1);
    program.store(Size::Word, R6, sockopt::OPTLEN, R0);
    // pass: if (call->optlen > page) call->optlen = 0; return 1;
    program.place(pass);
    let short = program.label();
    program.load(Size::Word, R1, R6, sockopt::OPTLEN);
    program.jump_if(R1, Cond::LessOrEqual, page, short);
    program.mov(R0, 0);
    program.store(Size::Word, R6, sockopt::OPTLEN, R0);
    program.place(short);
    program.mov(R0, 1);
    program.exit();
    program.finish()
}
