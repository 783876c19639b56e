// Connects to each URL, prints a line for each connection, and keeps the connections until its standard input ends.

import java.sql.Connection;
import java.sql.DriverManager;
import java.util.ArrayList;
import java.util.List;

class Jdbc {
    public static void main(String[] urls) throws Exception {
        List<Connection> connections = new ArrayList<>();
        for (String url : urls) {
            connections.add(DriverManager.getConnection(url));
        }
        System.out.println("ready " + connections.size());
        System.in.read();
    }
}
