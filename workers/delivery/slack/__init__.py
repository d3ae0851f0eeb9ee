"""Replies in Slack, through its own client: https://docs.slack.dev/tools/python-slack-sdk"""
