import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.net.StandardSocketOptions;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;
import jdk.net.ExtendedSocketOptions;

/**
 * Connects to itself with both kinds of Java's connections, sockets and channels. Then prints "stay", and waits for
 * the end of its standard input. The last channel sets its own keepalive: on, with 30 s.
 */
final class Keepalive {
    public static void main(String[] args) throws IOException {
        InetAddress here = InetAddress.getLoopbackAddress();
        try (ServerSocket server = new ServerSocket(0, 8, here);
                Socket client = new Socket(here, server.getLocalPort());
                Socket accepted = server.accept();
                ServerSocketChannel listening = ServerSocketChannel.open().bind(new InetSocketAddress(here, 0));
                SocketChannel plain = SocketChannel.open(listening.getLocalAddress());
                SocketChannel own = SocketChannel.open()) {
            own.setOption(StandardSocketOptions.SO_KEEPALIVE, true);
            own.setOption(ExtendedSocketOptions.TCP_KEEPIDLE, 30);
            own.connect(listening.getLocalAddress());
            own.setOption(ExtendedSocketOptions.TCP_KEEPIDLE, 30);
            System.out.println("stay");
            while (System.in.read() != -1) {
            }
        }
    }
}
