//! The `sock_ops` program of a cgroup. It applies the policy to each socket that connects, listens or is accepted.

use ka_core::Config;
use ka_policy::Mode;

use super::apply::{Apply, SOCKET};
use super::insn::{Assembler, Cond, Insn, Reg, Size};

/// `BPF_SOCK_OPS_*_CB` of <linux/bpf.h>: the events at which the program applies the policy.
#[repr(i32)]
enum SockOpsEvent {
    /// The socket is about to connect, by connect(2) or with its first data (TCP Fast Open). No timer runs yet.
    TcpConnect = 3,
    /// A connection has been established, and is not accepted yet.
    PassiveEstablished = 5,
    /// A socket begins to listen. Accepted sockets inherit its settings.
    TcpListen = 11,
}

/// An offset in `struct bpf_sock_ops`.
const OP: i16 = 0;

/// Returns the program, of type `BPF_PROG_TYPE_SOCK_OPS`.
///
/// In mode force it writes without reading first, because at these events a write cannot cause a probe. In mode default
/// it leaves a socket alone if the application has already turned keepalive on. `record` is the descriptor of the map
/// that holds the policy as text. Other processes read there which policy is in force.
pub(super) fn sock_ops(config: &Config, mode: Mode, record: i32) -> Vec<Insn> {
    let mut program = Assembler::default();
    let (apply, done) = (program.label(), program.label());
    // The program does not read the map. It refers to the map because the kernel keeps a map as long as a program
    // refers to it.
    program.load_map(Reg::R2, record);
    // struct bpf_sock_ops *socket = context;
    program.mov(SOCKET, Reg::R1);
    // switch (socket->op)
    program.load(Size::Word, Reg::R2, SOCKET, OP);
    for event in [SockOpsEvent::TcpConnect, SockOpsEvent::PassiveEstablished, SockOpsEvent::TcpListen] {
        program.jump_if(Reg::R2, Cond::Equal, event as i32, apply);
    }
    program.jump(done);
    program.place(apply);
    Apply {
        config,
        mode,
        blind: mode == Mode::Force,
        keeps_lower_rto_max: mode != Mode::Default,
        dry_run: false,
    }
    .emit(&mut program, done);
    // return 1;
    program.place(done);
    program.mov(Reg::R0, 1);
    program.exit();
    program.finish()
}
