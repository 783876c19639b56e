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
 * Connections of both of Java's kinds, sockets and channels, to itself: says "stay" when they are there, and waits until its
 * standard input ends. The last channel has a keepalive of its own: on, and 30 s.
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
