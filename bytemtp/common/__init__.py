"""What every other folder leans on: errors, vocabulary, settings, presets, command lines, device, files.

Imports nothing of bytemtp but itself.
"""
