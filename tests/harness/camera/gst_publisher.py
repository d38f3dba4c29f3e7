#!/usr/bin/python3
"""A camera: GStreamer's rtspclientsink publishing one encoded file at its own pace.

The payloaders are chosen here, unless it is asked for the sink's own: those take MP4A-LATM for AAC, and
repeat no parameter sets, which leaves viewers without them when the SDP has none; the parser does it then.
"""

import argparse
import sys

import gi

gi.require_version("Gst", "1.0")
from gi.repository import GLib, Gst  # noqa: E402

PARSERS = {
    "h264": ("h264parse", "rtph264pay", {"config-interval": -1}),
    "h265": ("h265parse", "rtph265pay", {"config-interval": -1}),
    "mjpeg": ("jpegparse", "rtpjpegpay", {}),
    "aac": ("aacparse", "rtpmp4gpay", {}),
    "opus": ("opusparse", "rtpopuspay", {}),
    "pcmu": ("identity", "rtppcmupay", {}),
    "pcma": ("identity", "rtppcmapay", {}),
}
STATIC = {"pcmu": 0, "pcma": 8, "mjpeg": 26}


def parser_of(codec, args):
    name, _, settings = PARSERS[codec]
    if not args.own_payloaders:
        return name
    return " ".join([name] + ["%s=%s" % setting for setting in settings.items()])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--file", required=True)
    parser.add_argument("--codecs", required=True, help="for example h264,aac")
    parser.add_argument("--url", required=True)
    parser.add_argument("--transport", choices=["udp", "tcp"], required=True)
    parser.add_argument("--credentials", help="user:password")
    parser.add_argument("--own-payloaders", action="store_true", help="let the sink choose")
    args = parser.parse_args()
    Gst.init(None)

    codecs = args.codecs.split(",")
    demuxer = "qtdemux" if args.file.endswith(".mp4") else "matroskademux"
    branches = " ".join(
        "demuxer. ! queue ! %s ! identity name=out%d sync=true" % (parser_of(codec, args), number)
        for number, codec in enumerate(codecs)
    )
    pipeline = Gst.parse_launch("filesrc location=%s ! %s name=demuxer %s" % (args.file, demuxer, branches))
    sink = Gst.ElementFactory.make("rtspclientsink", "sink")
    sink.set_property("location", args.url)
    Gst.util_set_object_arg(sink, "protocols", args.transport)
    if args.credentials:
        user, password = args.credentials.split(":", 1)
        sink.set_property("user-id", user)
        sink.set_property("user-pw", password)
    pipeline.add(sink)
    for number, codec in enumerate(codecs):
        pad = sink.request_pad_simple("sink_%u")
        if not args.own_payloaders:
            payloader = Gst.ElementFactory.make(PARSERS[codec][1], "pay%d" % number)
            payloader.set_property("pt", STATIC.get(codec, 96 + number))
            for name, value in PARSERS[codec][2].items():
                payloader.set_property(name, value)
            pad.set_property("payloader", payloader)
        pipeline.get_by_name("out%d" % number).get_static_pad("src").link(pad)

    loop = GLib.MainLoop()
    status = [0]

    def message(_bus, message):
        if message.type == Gst.MessageType.ERROR:
            sys.stderr.write("%s: %s\n" % message.parse_error())
            status[0] = 1
            loop.quit()
        elif message.type == Gst.MessageType.EOS:
            loop.quit()

    bus = pipeline.get_bus()
    bus.add_signal_watch()
    bus.connect("message", message)
    pipeline.set_state(Gst.State.PLAYING)
    GLib.unix_signal_add(GLib.PRIORITY_DEFAULT, 2, loop.quit)
    loop.run()
    pipeline.set_state(Gst.State.NULL)
    sys.exit(status[0])


main()
