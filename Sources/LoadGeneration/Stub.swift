import Histogram
import NIOPosix
import NIOHTTP1
