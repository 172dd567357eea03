// JSch through the front. Arguments as in common.py.

import com.jcraft.jsch.Channel;
import com.jcraft.jsch.ChannelDirectTCPIP;
import com.jcraft.jsch.ChannelExec;
import com.jcraft.jsch.ChannelSftp;
import com.jcraft.jsch.ChannelShell;
import com.jcraft.jsch.JSch;
import com.jcraft.jsch.Session;
import java.io.ByteArrayOutputStream;
import java.io.InputStream;
import java.io.OutputStream;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;

public class ByJsch {
  static final int MANY = 30;
  static final int WAIT_MS = 60_000;

  public static void main(String[] arguments) throws Exception {
    JSch library = new JSch();
    library.setKnownHosts(arguments[4]);
    Session session = library.getSession(arguments[2], "127.0.0.1", Integer.parseInt(arguments[1]));
    session.setPassword(arguments[3]);
    session.connect(WAIT_MS);
    switch (arguments[0]) {
      case "command" -> command(session);
      case "terminal" -> terminal(session);
      case "files" -> files(session, arguments[5]);
      case "forward" -> forward(session, Integer.parseInt(arguments[6]));
      case "many" -> many(session);
      default -> throw new IllegalArgumentException(arguments[0]);
    }
    session.disconnect();
    System.out.println("good");
  }

  static void command(Session session) throws Exception {
    ChannelExec channel = exec(session, "cat; echo err >&2; exit 9");
    InputStream out = channel.getInputStream();
    InputStream err = channel.getErrStream();
    OutputStream in = channel.getOutputStream();
    channel.connect(WAIT_MS);
    say(in, "in");
    in.close();
    same(text(out.readAllBytes()), "in");
    same(text(err.readAllBytes()), "err\n");
    same(status(channel), 9);
  }

  static void terminal(Session session) throws Exception {
    ChannelShell channel = (ChannelShell) session.openChannel("shell");
    channel.setPtyType("xterm", 77, 33, 0, 0);
    InputStream out = channel.getInputStream();
    OutputStream in = channel.getOutputStream();
    channel.connect(WAIT_MS);
    // The quotes tell the answer from the echo of the question.
    say(in, "stty size; tty; echo e''nd\n");
    String first = until(out, "end\r\n");
    holds(first, "33 77");
    holds(first, "/dev/pts/");
    channel.setPtySize(88, 44, 0, 0);
    say(in, "stty size; echo e''nd\n");
    holds(until(out, "end\r\n"), "44 88");
    say(in, "exit 5\n");
    out.readAllBytes();
    same(status(channel), 5);
  }

  static void files(Session session, String folder) throws Exception {
    ChannelSftp channel = (ChannelSftp) session.openChannel("sftp");
    channel.connect(WAIT_MS);
    channel.put(folder + "/blob", folder + "/far");
    channel.get(folder + "/far", folder + "/back");
    channel.disconnect();
  }

  static void forward(Session session, int service) throws Exception {
    ChannelDirectTCPIP channel = (ChannelDirectTCPIP) session.openChannel("direct-tcpip");
    channel.setHost("127.0.0.1");
    channel.setPort(service);
    InputStream out = channel.getInputStream();
    OutputStream in = channel.getOutputStream();
    channel.connect(WAIT_MS);
    same(text(out.readNBytes(6)), "hello\n");
    byte[] echoed = new byte[300_000];
    Arrays.fill(echoed, (byte) 7);
    in.write(echoed);
    in.close();
    same(Arrays.equals(out.readAllBytes(), echoed), true);
  }

  // All are open before the first one is used.
  static void many(Session session) throws Exception {
    ChannelExec[] channels = new ChannelExec[MANY];
    InputStream[] outs = new InputStream[MANY];
    OutputStream[] ins = new OutputStream[MANY];
    for (int number = 0; number < MANY; number++) {
      channels[number] = exec(session, "cat");
      outs[number] = channels[number].getInputStream();
      ins[number] = channels[number].getOutputStream();
      channels[number].connect(WAIT_MS);
    }
    for (int number = 0; number < MANY; number++) {
      say(ins[number], "number " + number);
      ins[number].close();
      same(text(outs[number].readAllBytes()), "number " + number);
      same(status(channels[number]), 0);
    }
  }

  static ChannelExec exec(Session session, String command) throws Exception {
    ChannelExec channel = (ChannelExec) session.openChannel("exec");
    channel.setCommand(command);
    return channel;
  }

  // The library tells of a channel's end by nothing but its state.
  static int status(Channel channel) throws Exception {
    long begun = System.nanoTime();
    while (!channel.isClosed()) {
      if (System.nanoTime() - begun > WAIT_MS * 1_000_000L) throw new IllegalStateException("the channel stays open");
      Thread.sleep(5);
    }
    return channel.getExitStatus();
  }

  static String until(InputStream out, String mark) throws Exception {
    ByteArrayOutputStream heard = new ByteArrayOutputStream();
    while (!heard.toString(StandardCharsets.UTF_8).contains(mark)) {
      int next = out.read();
      if (next < 0) throw new IllegalStateException("it ended after " + heard);
      heard.write(next);
    }
    return heard.toString(StandardCharsets.UTF_8);
  }

  static void say(OutputStream in, String words) throws Exception {
    in.write(words.getBytes(StandardCharsets.UTF_8));
    in.flush();
  }

  static String text(byte[] bytes) {
    return new String(bytes, StandardCharsets.UTF_8);
  }

  static void holds(String heard, String part) {
    if (!heard.contains(part)) throw new IllegalStateException("no " + part + " in " + heard);
  }

  static void same(Object found, Object wanted) {
    if (!found.equals(wanted)) throw new IllegalStateException("found " + found + ", and not " + wanted);
  }
}
