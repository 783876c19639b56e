//! The rule by which ka-core applies a policy to a socket, as BPF instructions.
//!
//! The rule says which options are written, and in which order. The reasons are in ka-core's apply.rs. ka-core also
//! restores the old values after a failed write. The BPF programs do not: ka has checked the values, and the kernel
//! has locked the socket, so no write fails after another has succeeded.

use ka_core::{Config, Retransmission, SockOpt, Timer};
use ka_policy::{Mode, user_timeout_limit};

use super::insn::{Assembler, Cond, Helper, Label, Operand, Reg, Size};
use crate::error::{Error, Result};

/// The first argument of `bpf_setsockopt`: the context of a `sock_ops` program, or a socket.
pub(super) const SOCKET: Reg = Reg::R6;
/// The number of options that were written, or on a dry run would have been written.
pub(super) const WRITES: Reg = Reg::R7;
/// The value to write.
const VALUE: Reg = Reg::R8;
/// 1 if the interval or the count was written. These writes do not re-arm the keepalive timer.
const CHANGED: Reg = Reg::R9;

/// The stack slot through which the helpers receive and return a value.
const SLOT: i16 = -8;
/// The stack offset below which the caller may use the stack.
pub(super) const FREE: i16 = SLOT;

/// A policy, and how the instructions apply it.
pub(super) struct Apply<'a> {
    /// The policy, as [`complete`] returns it.
    pub(super) config: &'a Config,
    pub(super) mode: Mode,
    /// Write without reading the current values first. This is safe if no timer of the socket runs, because then
    /// rewriting an unchanged value has no effect. Overrides the application's own settings.
    pub(super) blind: bool,
    /// Keep a `TCP_RTO_MAX_MS` of the socket that is below that of the policy.
    pub(super) keeps_lower_rto_max: bool,
    /// Only count the writes.
    pub(super) dry_run: bool,
}

const _: () =
    assert!(Timer::ALL.len() == 5, "write_off and write_on name each timer: place a new one in their order");

impl Apply<'_> {
    /// Appends the instructions. Execution continues after them. If the kernel rejects an option, execution continues
    /// at `failed` instead, with a negative errno in R0.
    pub(super) fn emit(&self, program: &mut Assembler, failed: Label) {
        let done = program.label();
        program.mov(WRITES, 0);
        if self.blind {
            self.write_off(program, failed);
            return;
        }
        // was_on = getsockopt(SO_KEEPALIVE);
        get(program, SockOpt::KeepAlive, failed);
        match (self.config.enabled(), self.mode) {
            // if (was_on) goto done;
            (Some(true), Mode::Default) => program.jump_if(Reg::R0, Cond::NotEqual, 0, done),
            // The policy does not turn keepalive on, and in these modes the application may keep its own settings.
            (Some(false) | None, Mode::Default | Mode::Floor) => return program.place(done),
            _ => {}
        }
        let is_on = program.label();
        program.jump_if(Reg::R0, Cond::NotEqual, 0, is_on);
        self.write_off(program, failed);
        program.jump(done);
        program.place(is_on);
        self.write_on(program, failed);
        program.place(done);
    }

    /// Appends the writes for a socket with keepalive off: all options, SO_KEEPALIVE last.
    fn write_off(&self, program: &mut Assembler, failed: Label) {
        self.write_user_timeout(program, failed);
        self.write_rto_max(program, failed);
        for timer in [Timer::Intvl, Timer::Cnt, Timer::Idle] {
            if let Some(value) = self.config.timer(timer) {
                self.choose(program, timer, value, failed);
                self.set(program, SockOpt::Timer(timer), VALUE, failed);
            }
        }
        if self.config.enabled() == Some(true) {
            self.set(program, SockOpt::KeepAlive, 1, failed);
        }
    }

    /// Appends the writes for a socket with keepalive on: the options that differ. The idle time comes last, because
    /// its write re-arms the timer.
    fn write_on(&self, program: &mut Assembler, failed: Label) {
        let turn_off = self.config.enabled() == Some(false);
        if turn_off {
            self.set(program, SockOpt::KeepAlive, 0, failed);
        }
        self.write_user_timeout(program, failed);
        self.write_rto_max(program, failed);
        program.mov(CHANGED, 0);
        for timer in [Timer::Intvl, Timer::Cnt] {
            if let Some(value) = self.config.timer(timer) {
                // value = ...; if (getsockopt(timer) != value) { setsockopt(timer, value); changed = 1; }
                let same = program.label();
                self.choose(program, timer, value, failed);
                get(program, SockOpt::Timer(timer), failed);
                program.jump_if(Reg::R0, Cond::Equal, VALUE, same);
                self.set(program, SockOpt::Timer(timer), VALUE, failed);
                program.mov(CHANGED, 1);
                program.place(same);
            }
        }
        if turn_off && self.config.idle().is_none() {
            return;
        }
        // value = named ? ... : getsockopt(TCP_KEEPIDLE);
        let (write, same) = (program.label(), program.label());
        if let Some(value) = self.config.idle() {
            self.choose(program, Timer::Idle, value, failed);
            // if (getsockopt(TCP_KEEPIDLE) != value) goto write;
            get(program, SockOpt::Timer(Timer::Idle), failed);
            program.jump_if(Reg::R0, Cond::NotEqual, VALUE, write);
        } else {
            get(program, SockOpt::Timer(Timer::Idle), failed);
            program.mov(VALUE, Reg::R0);
            // A value from the sysctl, such as 86400 or -1, may be outside the range of setsockopt. Do not write that.
            let range = Timer::Idle.range();
            program.jump_if(VALUE, Cond::Less, *range.start(), same);
            program.jump_if(VALUE, Cond::Greater, *range.end(), same);
        }
        // if (!changed || turn_off) goto same;
        if turn_off {
            program.jump(same);
        } else {
            program.jump_if(CHANGED, Cond::Equal, 0, same);
        }
        program.place(write);
        self.set(program, SockOpt::Timer(Timer::Idle), VALUE, failed);
        program.place(same);
    }

    /// Appends the write of the policy's user timeout. If the policy has none, the instructions lower a user timeout
    /// that would delay detection.
    fn write_user_timeout(&self, program: &mut Assembler, failed: Label) {
        let option = SockOpt::Timer(Timer::UserTimeout);
        let same = program.label();
        let value = match self.config.timer(Timer::UserTimeout) {
            Some(value) if self.blind => return self.set(program, option, value, failed),
            // if (getsockopt(TCP_USER_TIMEOUT) == value) goto same;
            Some(value) => {
                get(program, option, failed);
                program.jump_if(Reg::R0, Cond::Equal, value, same);
                value
            }
            None if self.mode == Mode::Default || self.config.enabled() != Some(true) => return,
            // if (getsockopt(TCP_USER_TIMEOUT) <= latest) goto same;
            None => {
                let latest = user_timeout_limit(self.config);
                // Linux before 6.1 cannot read the user timeout here. Then it is not changed.
                get(program, option, if self.blind { same } else { failed });
                program.jump_if(Reg::R0, Cond::LessOrEqual, latest, same);
                latest
            }
        };
        self.set(program, option, value, failed);
        program.place(same);
    }

    /// Appends the write of the policy's `TCP_RTO_MAX_MS`. If the kernel lacks the option (before Linux 6.15), it is
    /// left out: ka has reported that before it loaded the program.
    fn write_rto_max(&self, program: &mut Assembler, failed: Label) {
        let Some(value) = self.config.timer(Timer::RtoMax) else { return };
        let option = SockOpt::Timer(Timer::RtoMax);
        let (write, same) = (program.label(), program.label());
        let reported = Timer::RtoMax.reported(value);
        // if (getsockopt(TCP_RTO_MAX_MS) is a value that the kernel reports after this write) goto same;
        get(program, option, same);
        if !self.keeps_lower_rto_max {
            program.jump_if(Reg::R0, Cond::Less, *reported.start(), write);
        }
        program.jump_if(Reg::R0, Cond::LessOrEqual, *reported.end(), same);
        program.place(write);
        self.set(program, option, value, failed);
        program.place(same);
    }

    /// Loads the timer's new value: the policy's value, or in mode floor the socket's own value if that is stricter.
    fn choose(&self, program: &mut Assembler, timer: Timer, value: i32, failed: Label) {
        let chosen = program.label();
        program.mov(VALUE, value);
        if self.mode == Mode::Floor {
            // own = getsockopt(timer); if (0 < own && own < value) value = own;
            get(program, SockOpt::Timer(timer), failed);
            program.jump_if(Reg::R0, Cond::LessOrEqual, 0, chosen);
            program.jump_if(VALUE, Cond::LessOrEqual, Reg::R0, chosen);
            program.mov(VALUE, Reg::R0);
        }
        program.place(chosen);
    }

    /// `if (bpf_setsockopt(socket, level, name, &value, 4) < 0) goto failed; writes++;`
    fn set(&self, program: &mut Assembler, option: SockOpt, value: impl Into<Operand>, failed: Label) {
        if !self.dry_run {
            program.store(Size::Word, Reg::R10, SLOT, value);
            call(program, Helper::SetSockOpt, option);
            program.jump_if(Reg::R0, Cond::Less, 0, failed);
        }
        program.add(WRITES, 1);
    }
}

/// `if (bpf_getsockopt(socket, level, name, &value, 4) < 0) goto failed; R0 = value;`
pub(super) fn get(program: &mut Assembler, option: SockOpt, failed: Label) {
    call(program, Helper::GetSockOpt, option);
    program.jump_if(Reg::R0, Cond::Less, 0, failed);
    program.load(Size::Word, Reg::R0, Reg::R10, SLOT);
}

fn call(program: &mut Assembler, helper: Helper, option: SockOpt) {
    let (level, name) = option.level_and_name();
    program.mov(Reg::R1, SOCKET);
    program.mov(Reg::R2, level);
    program.mov(Reg::R3, name);
    program.mov(Reg::R4, Reg::R10);
    program.add(Reg::R4, i32::from(SLOT));
    program.mov(Reg::R5, 4);
    program.call(helper);
}

/// Returns the policy with numbers in place of its automatic values. ka computes them when it generates the program, so
/// it cannot use the values of a socket.
///
/// # Errors
///
/// [`Error::IncompleteAuto`] if the policy lacks a value from which an automatic one is computed.
pub(super) fn complete(config: &Config) -> Result<Config> {
    let mut config = config.resolved(Retransmission::read().retries);
    if config.is_auto(Timer::UserTimeout) && config.detection_ms().is_some() {
        let limit = user_timeout_limit(&config);
        config = config.with_timer(Timer::UserTimeout, Some(limit)).unwrap_or(config);
    }
    let has_auto = Timer::ALL.into_iter().any(|timer| config.is_auto(timer));
    if has_auto { Err(Error::IncompleteAuto) } else { Ok(config) }
}
