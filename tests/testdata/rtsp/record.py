#!/usr/bin/python3
"""Records RTSP conversations of third-party programs, on loopback only.

usage: record.py OUTPUT_DIR

Each conversation NAME gives NAME.client.bin (bytes of the player or publisher) and NAME.server.bin (bytes of
the server), exactly as they were on the TCP connection, cut off after LIMIT bytes. Needs ffmpeg, GStreamer
with rtspclientsink, and the GstRtspServer bindings for Python.
"""
import os
import socket
import subprocess
import sys
import threading
import time

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

LIMIT = 48 * 1024
VIDEO = (
    "videotestsrc is-live=true pattern=smpte ! video/x-raw,width=160,height=120,framerate=25/1 ! "
    "x264enc tune=zerolatency key-int-max=10 bitrate=100 ! rtph264pay name=pay0 pt=96"
)
AUDIO = "audiotestsrc is-live=true ! audio/x-raw,rate=8000 ! alawenc ! rtppcmapay name=pay1 pt=8"


def serve():
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service("0")
    mounts = server.get_mount_points()
    play = GstRtspServer.RTSPMediaFactory()
    play.set_launch(f"( {VIDEO} {AUDIO} )")
    play.set_shared(True)
    mounts.add_factory("/cam", play)
    record = GstRtspServer.RTSPMediaFactory()
    record.set_launch("( rtph264depay name=depay0 ! fakesink )")
    record.set_transport_mode(GstRtspServer.RTSPTransportMode.RECORD)
    mounts.add_factory("/in", record)
    server.attach(None)
    threading.Thread(target=GLib.MainLoop().run, daemon=True).start()
    return server.get_bound_port()


class Relay:
    """Passes the bytes of one listening port to `target` and keeps those of its first connection."""

    def __init__(self, target):
        self.target = target
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.client, self.server = bytearray(), bytearray()
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        first = True
        while True:
            near, _ = self.listener.accept()
            far = socket.create_connection(("127.0.0.1", self.target))
            for source, sink, record in ((near, far, self.client), (far, near, self.server)):
                keep = record if first else bytearray()
                threading.Thread(target=self.copy, args=(source, sink, keep), daemon=True).start()
            first = False

    @staticmethod
    def copy(source, sink, record):
        try:
            while data := source.recv(65536):
                record += data
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass


def main():
    Gst.init(None)
    out = sys.argv[1]
    port = serve()
    raw = ["-f", "lavfi", "-re", "-i", "testsrc=size=160x120:rate=25"]
    h264 = ["-c:v", "libx264", "-preset", "ultrafast", "-tune", "zerolatency", "-b:v", "100k", "-g", "10"]
    ffmpeg = ["ffmpeg", "-nostdin", "-loglevel", "error"]
    source = "videotestsrc is-live=true num-buffers=60 ! video/x-raw,width=160,height=120 ! x264enc tune=zerolatency bitrate=100"
    conversations = {
        "ffmpeg-play-tcp": lambda url: ffmpeg + ["-rtsp_transport", "tcp", "-i", url + "/cam", "-t", "2", "-f", "null", "-"],
        "ffmpeg-play-udp": lambda url: ffmpeg + ["-rtsp_transport", "udp", "-i", url + "/cam", "-t", "2", "-f", "null", "-"],
        "ffmpeg-publish-tcp": lambda url: ffmpeg + raw + h264 + ["-t", "2", "-f", "rtsp", "-rtsp_transport", "tcp", url + "/in"],
        "gst-play-tcp": lambda url: ["timeout", "-s", "INT", "6", "gst-launch-1.0", "-q", "-e", "rtspsrc", f"location={url}/cam", "protocols=tcp", "!", "fakesink", "num-buffers=80"],
        "gst-play-udp": lambda url: ["timeout", "-s", "INT", "6", "gst-launch-1.0", "-q", "-e", "rtspsrc", f"location={url}/cam", "protocols=udp", "!", "fakesink", "num-buffers=80"],
        "gst-play-version-2": lambda url: ["timeout", "-s", "INT", "6", "gst-launch-1.0", "-q", "-e", "rtspsrc", f"location={url}/cam", "protocols=tcp", "default-rtsp-version=2-0", "!", "fakesink", "num-buffers=80"],
        "gst-publish-tcp": lambda url: ["timeout", "-s", "INT", "8", "gst-launch-1.0", "-q", "-e", *source.split(), "!", "rtspclientsink", "protocols=tcp", f"location={url}/in"],
        "vlc-play": lambda url: ["timeout", "-s", "INT", "6", "cvlc", "--intf", "dummy", "--play-and-exit", url + "/cam"],
    }
    for name, command in conversations.items():
        relay = Relay(port)
        url = f"rtsp://127.0.0.1:{relay.port}"
        user = {"user": "nobody"} if name.startswith("vlc") and os.geteuid() == 0 else {}
        env = dict(os.environ, HOME="/tmp")
        done = subprocess.run(command(url), timeout=40, capture_output=True, env=env, check=False, **user)
        time.sleep(0.5)
        for side in ("client", "server"):
            data = bytes(getattr(relay, side))[:LIMIT]
            with open(os.path.join(out, f"{name}.{side}.bin"), "wb") as file:
                file.write(data)
            print(name, side, len(data), "exit", done.returncode, done.stderr[-200:])


main()
