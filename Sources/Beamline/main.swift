import ArgumentParser
import Configuration
print("beamline")
