"""Instruction data from captions: ask a chat model, journal every answer, filter, count, write."""
