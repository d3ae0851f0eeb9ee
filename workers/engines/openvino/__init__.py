"""The engine for CPUs: OpenVINO GenAI."""
