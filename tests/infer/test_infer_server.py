"""The server through the official client, over a real socket."""

from __future__ import annotations

import json
import re
import time

import httpx
import openai
import pytest

from conftest import LiveServer
