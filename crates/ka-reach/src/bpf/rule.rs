//! The apply rule of ka-core, as instructions: what a policy does to a socket, in which order, and what it leaves.
//!
//! The order and its reasons are those of ka-core's apply.rs. What sets a socket in a program cannot fail halfway for
//! want of anything: the values are checked, and the socket is locked. So nothing is put back.

use ka_core::{Config, SockOpt, Timer, UserTimeout};
use ka_policy::{Mode, user_timeout_limit};

use super::insn::{Assembler, Cond, Helper, Label, Reg, Size, Source};

/// Who holds what, while the rule is carried out.
///
/// The first argument of `bpf_setsockopt`: the context of a `sock_ops` program, or a socket.
pub(super) const SOCKET: Reg = Reg::R6;
/// How many options were written, or would have been.
pub(super) const WRITES: Reg = Reg::R7;
/// The value that is to be written.
const VALUE: Reg = Reg::R8;
/// Whether a timer was written that does not re-arm.
const CHANGED: Reg = Reg::R9;

/// Where a value is handed over, on the stack.
const SLOT: i16 = -8;
/// Whether keepalive was on, on the stack.
const WAS_ON: i16 = -16;
/// Below this the stack is the caller's.
pub(super) const FREE: i16 = -16;

/// A policy, and how it is carried out.
pub(super) struct Rule<'a> {
    pub(super) config: &'a Config,
    pub(super) mode: Mode,
    /// The socket is new, or all its timers stand still, so that what it has need not be asked: nobody's word counts, and
    /// writing what is there already does nothing.
    pub(super) blind: bool,
    /// Counts what it would write.
    pub(super) dry_run: bool,
}

impl Rule<'_> {
    /// Writes it down. It goes on behind its end; where the kernel refuses something, at `failed`, with R0 negative.
    pub(super) fn write(&self, program: &mut Assembler, failed: Label) {
        let done = program.label();
        program.mov(WRITES, 0);
        if self.blind {
            self.write_off(program, failed);
            return;
        }
        // was_on = getsockopt(SO_KEEPALIVE);
        get(program, SockOpt::KeepAlive, failed);
        program.store(Size::Word, Reg::R10, WAS_ON, Reg::R0);
        match (self.config.enabled(), self.mode) {
            // if (was_on) goto done;
            (Some(true), Mode::Default) => program.jump_if(Reg::R0, Cond::NotEqual, 0, done),
            // Nothing to be stricter than, and nothing to give: who may have a word keeps it.
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

    /// Keepalive is off: everything is written, and SO_KEEPALIVE last.
    fn write_off(&self, program: &mut Assembler, failed: Label) {
        self.write_user_timeout(program, failed);
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

    /// Keepalive is on: what differs is written, and the idle time after whatever does not re-arm.
    fn write_on(&self, program: &mut Assembler, failed: Label) {
        let turn_off = self.config.enabled() == Some(false);
        if turn_off {
            self.set(program, SockOpt::KeepAlive, 0, failed);
        }
        self.write_user_timeout(program, failed);
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
            // What could not be set, as a sysctl of 86400 or -1, stays unwritten.
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

    /// What the policy says of the user timeout; and where it says nothing, that no other makes detection slower.
    fn write_user_timeout(&self, program: &mut Assembler, failed: Label) {
        let option = SockOpt::Timer(Timer::UserTimeout);
        let same = program.label();
        let value = match user_timeout(self.config) {
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
                // A kernel that cannot say (before 6.1) is not asked to change it.
                get(program, option, if self.blind { same } else { failed });
                program.jump_if(Reg::R0, Cond::LessOrEqual, latest, same);
                latest
            }
        };
        self.set(program, option, value, failed);
        program.place(same);
    }

    /// The value that a timer is to have: the policy's, or in floor mode the socket's own where that is stricter.
    fn choose(&self, program: &mut Assembler, timer: Timer, value: i32, failed: Label) {
        let ours = program.label();
        program.mov(VALUE, value);
        if self.mode == Mode::Floor {
            // theirs = getsockopt(timer); if (0 < theirs && theirs < value) value = theirs;
            get(program, SockOpt::Timer(timer), failed);
            program.jump_if(Reg::R0, Cond::LessOrEqual, 0, ours);
            program.jump_if(VALUE, Cond::LessOrEqual, Reg::R0, ours);
            program.mov(VALUE, Reg::R0);
        }
        program.place(ours);
    }

    /// `if (bpf_setsockopt(socket, level, name, &value, 4) < 0) goto failed; writes++;`
    fn set(&self, program: &mut Assembler, option: SockOpt, value: impl Into<Source>, failed: Label) {
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

/// The user timeout that a policy names, worked out. An automatic one needs all that it is made of.
pub(super) fn user_timeout(config: &Config) -> Option<i32> {
    match config.user_timeout() {
        UserTimeout::Keep => None,
        UserTimeout::Milliseconds(value) => Some(value),
        UserTimeout::Auto => Some(user_timeout_limit(config)),
    }
}

/// Whether a program can carry the policy out: an automatic user timeout is worked out here, and not there.
pub fn is_complete(config: &Config) -> bool {
    config.user_timeout() != UserTimeout::Auto
        || (config.idle().is_some() && config.intvl().is_some() && config.cnt().is_some())
}
