#!/usr/bin/python3
"""A viewer that says when it would show what: GStreamer's rtspsrc with H.264 and AAC.

Writes one line per decoded picture and compressed frame of sound: video or audio, the running time in
nanoseconds at which a screen or loudspeaker would play it, and its checksum. Before the first picture a line
`joined` with the time of the first packet of the picture track. With the buffer mode `none` times are those of
the RTP timestamps alone, otherwise the player's clock follows their arrival. Where the RTP timestamps of a track,
in the order of its sequence numbers, go back: a line `back`, the track, and by how many ticks.
"""

import hashlib
import sys

import gi

gi.require_version("Gst", "1.0")
from gi.repository import GLib, Gst  # noqa: E402

VIDEO = "rtph264depay ! h264parse ! avdec_h264 ! video/x-raw,format=I420 ! appsink name=video"
AUDIO = "rtpmp4gdepay ! aacparse ! audio/mpeg,stream-format=raw ! appsink name=audio"


def main():
    url, protocol, mode = sys.argv[1:]
    Gst.init(None)
    pipeline = Gst.Pipeline.new()
    source = Gst.ElementFactory.make("rtspsrc", "source")
    source.set_property("location", url)
    Gst.util_set_object_arg(source, "protocols", protocol)
    source.set_property("latency", 200)
    Gst.util_set_object_arg(source, "buffer-mode", mode)
    pipeline.add(source)

    def sample(sink, name):
        taken = sink.emit("pull-sample")
        buffer = taken.get_buffer()
        time = taken.get_segment().to_running_time(Gst.Format.TIME, buffer.pts)
        if time == Gst.CLOCK_TIME_NONE:
            return Gst.FlowReturn.OK
        data = buffer.extract_dup(0, buffer.get_size())
        digest = hashlib.md5(data) if name == "video" else hashlib.sha1(data)
        sys.stdout.write("%s %d %s\n" % (name, time, digest.hexdigest()))
        sys.stdout.flush()
        return Gst.FlowReturn.OK

    def joined(pad, info):
        segment = pad.get_sticky_event(Gst.EventType.SEGMENT, 0).parse_segment()
        time = segment.to_running_time(Gst.Format.TIME, info.get_buffer().pts)
        sys.stdout.write("joined %d -\n" % time)
        return Gst.PadProbeReturn.REMOVE

    last = {}

    def packet(_pad, info, name):
        head = info.get_buffer().extract_dup(4, 4)
        ticks = int.from_bytes(head, "big")
        ahead = (ticks - last.get(name, ticks)) & 0xFFFFFFFF
        last[name] = ticks
        if ahead >= 0x80000000:
            sys.stdout.write("back %s %d\n" % (name, 0x100000000 - ahead))
        return Gst.PadProbeReturn.OK

    def linked(_source, pad):
        name = pad.get_current_caps().get_structure(0).get_string("media")
        pad.add_probe(Gst.PadProbeType.BUFFER, packet, name)
        chain = Gst.parse_bin_from_description("queue ! " + (VIDEO if name == "video" else AUDIO), True)
        sink = chain.get_by_name(name)
        sink.set_property("emit-signals", True)
        sink.set_property("sync", False)
        sink.connect("new-sample", sample, name)
        pipeline.add(chain)
        chain.sync_state_with_parent()
        pad.link(chain.get_static_pad("sink"))
        if name == "video":
            pad.add_probe(Gst.PadProbeType.BUFFER, joined)

    source.connect("pad-added", linked)
    loop = GLib.MainLoop()

    def message(_bus, message):
        if message.type == Gst.MessageType.ERROR:
            sys.stderr.write("%s: %s\n" % message.parse_error())
            sys.exit(1)
        elif message.type == Gst.MessageType.EOS:
            loop.quit()

    bus = pipeline.get_bus()
    bus.add_signal_watch()
    bus.connect("message", message)
    pipeline.set_state(Gst.State.PLAYING)
    GLib.unix_signal_add(GLib.PRIORITY_DEFAULT, 2, loop.quit)
    loop.run()
    pipeline.set_state(Gst.State.NULL)


main()
