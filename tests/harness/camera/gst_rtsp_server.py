#!/usr/bin/python3
"""A camera: GStreamer's RTSP server serving one encoded file as an endless live source.

Access units are taken out of the file once and pushed, paced, for every media the server
prepares, so that what a viewer decodes is a run of what the file itself decodes to.
Session events leave as JSON lines on stdout.
"""

import argparse
import json
import sys
import threading
import time

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
gi.require_version("GstRtsp", "1.0")
from gi.repository import GLib, Gst, GstRtsp, GstRtspServer  # noqa: E402

VIDEO = {
    "h264": ("h264parse ! video/x-h264,stream-format=byte-stream,alignment=au", "rtph264pay config-interval=-1"),
    "h265": ("h265parse ! video/x-h265,stream-format=byte-stream,alignment=au", "rtph265pay config-interval=-1"),
    "mjpeg": ("jpegparse", "rtpjpegpay"),
}
AUDIO = {
    "aac": ("aacparse ! audio/mpeg,stream-format=raw", "rtpmp4gpay"),
    "opus": ("opusparse", "rtpopuspay"),
    "pcmu": ("identity", "rtppcmupay"),
    "pcma": ("identity", "rtppcmapay"),
}


def event(name, **fields):
    sys.stdout.write(json.dumps({"event": name, **fields}) + "\n")
    sys.stdout.flush()


def read_units(path, codecs):
    """Returns per track (caps, [(bytes, duration in ns)]) of the whole file."""
    parts = []
    if codecs[0] in VIDEO:
        parts.append("d. ! queue ! %s ! appsink name=v sync=false" % VIDEO[codecs[0]][0])
    audio = [c for c in codecs if c in AUDIO]
    if audio:
        parts.append("d. ! queue ! %s ! appsink name=a sync=false" % AUDIO[audio[0]][0])
    demux = "qtdemux" if path.endswith(".mp4") else "matroskademux"
    pipeline = Gst.parse_launch("filesrc location=%s ! %s name=d %s" % (path, demux, " ".join(parts)))
    found = {}
    pipeline.set_state(Gst.State.PLAYING)

    def drain(name, sink):
        units, caps = [], None
        while True:
            sample = sink.emit("pull-sample")
            if sample is None:
                break
            caps = caps or sample.get_caps()
            buffer = sample.get_buffer()
            units.append((buffer.extract_dup(0, buffer.get_size()), buffer.pts))
        found[name] = (caps, units)

    threads = []
    for name in ("v", "a"):
        sink = pipeline.get_by_name(name)
        if sink:
            thread = threading.Thread(target=drain, args=(name, sink))
            thread.start()
            threads.append(thread)
    for thread in threads:
        thread.join()
    pipeline.set_state(Gst.State.NULL)
    return found


class Feeder(threading.Thread):
    """Pushes every track's units by their times, again and again, until told to stop."""

    def __init__(self, sources, length_ns):
        super().__init__(daemon=True)
        self.sources, self.length_ns, self.running = sources, length_ns, True

    def run(self):
        started = time.monotonic_ns()
        schedule = sorted(
            (pts, name, index)
            for name, (_, units) in self.sources.items()
            for index, (_, pts) in enumerate(units)
        )
        lap = 0
        while self.running:
            for pts, name, index in schedule:
                at = lap * self.length_ns + pts
                wait = at - (time.monotonic_ns() - started)
                if wait > 0:
                    time.sleep(wait / 1e9)
                if not self.running:
                    return
                element, units = self.sources[name]
                buffer = Gst.Buffer.new_wrapped(units[index][0])
                buffer.pts = buffer.dts = at
                if element.emit("push-buffer", buffer) != Gst.FlowReturn.OK:
                    return
            lap += 1


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--file", required=True)
    parser.add_argument("--codecs", required=True, help="for example h264,aac")
    parser.add_argument("--length", type=float, required=True, help="seconds of the file")
    parser.add_argument("--address", default="127.0.0.1")
    parser.add_argument("--port", default="0")
    parser.add_argument("--path", default="/cam")
    parser.add_argument("--digest", help="user:password")
    parser.add_argument("--transport", choices=["udp", "tcp", "any"], default="any")
    parser.add_argument("--mtu", type=int, default=1400)
    parser.add_argument("--ssrc", type=int)
    parser.add_argument("--stays", action="store_true", help="sessions outlive their connection")
    args = parser.parse_args()

    Gst.init(None)
    codecs = args.codecs.split(",")
    units = read_units(args.file, codecs)
    length_ns = int(args.length * 1e9)

    launch, number = [], 0
    for name in ("v", "a"):
        if name not in units:
            continue
        table = VIDEO if name == "v" else AUDIO
        codec = [c for c in codecs if c in table][0]
        static = {"pcmu": 0, "pcma": 8, "mjpeg": 26}
        ssrc = "" if args.ssrc is None else " ssrc=%d" % (args.ssrc + number)
        launch.append(
            "appsrc name=%s is-live=true format=time max-bytes=0 ! %s name=pay%d pt=%d mtu=%d%s"
            % (name, table[codec][1], number, static.get(codec, 96 + number), args.mtu, ssrc)
        )
        number += 1

    server = GstRtspServer.RTSPServer()
    server.set_address(args.address)
    server.set_service(args.port)
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch("( " + " ".join(launch) + " )")
    factory.set_shared(True)
    factory.set_latency(0)
    factory.set_stop_on_disconnect(not args.stays)
    allowed = {
        "udp": GstRtsp.RTSPLowerTrans.UDP,
        "tcp": GstRtsp.RTSPLowerTrans.TCP,
        "any": GstRtsp.RTSPLowerTrans.UDP | GstRtsp.RTSPLowerTrans.TCP,
    }
    factory.set_protocols(allowed[args.transport])

    def configure(_factory, media):
        element = media.get_element()
        sources = {}
        for name, (caps, track) in units.items():
            source = element.get_by_name(name)
            source.set_property("caps", caps)
            sources[name] = (source, track)
        feeder = Feeder(sources, length_ns)
        media.connect("prepared", lambda _media: event("prepared"))

        def unprepared(_media):
            feeder.running = False
            event("unprepared")

        media.connect("unprepared", unprepared)
        event("configured")
        feeder.start()

    factory.connect("media-configure", configure)
    if args.digest:
        user, password = args.digest.split(":", 1)
        auth = GstRtspServer.RTSPAuth()
        auth.set_supported_methods(GstRtsp.RTSPAuthMethod.DIGEST)
        token = GstRtspServer.RTSPToken()
        token.set_string("media.factory.role", user)
        auth.add_digest(user, password, token)
        server.set_auth(auth)
        factory.add_role_from_structure(
            Gst.Structure.from_string(
                "%s, media.factory.access=(boolean)true, media.factory.construct=(boolean)true" % user
            )[0]
        )
    server.get_mount_points().add_factory(args.path, factory)

    clients = [0, 0]

    def connected(_server, client):
        clients[0] += 1
        clients[1] += 1
        event("client", open=clients[0], total=clients[1])
        for signal in ("setup-request", "play-request", "teardown-request", "describe-request"):
            client.connect(signal, lambda _c, ctx, s=signal: event(s.split("-")[0], session=ctx.session.get_sessionid() if ctx.session else None))
        client.connect("new-session", lambda _c, session: event("session", id=session.get_sessionid()))

        def closed(_client):
            clients[0] -= 1
            event("closed", open=clients[0], total=clients[1])

        client.connect("closed", closed)

    server.connect("client-connected", connected)
    if not server.attach(None):
        event("failed", reason="the address is in use")
        sys.exit(1)
    event("listening", port=server.get_bound_port(), url="rtsp://%s:%d%s" % (args.address, server.get_bound_port(), args.path))
    GLib.timeout_add_seconds(2, lambda: (server.get_session_pool().cleanup(), True)[1])
    GLib.MainLoop().run()


main()
