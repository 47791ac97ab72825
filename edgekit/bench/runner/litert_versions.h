{"9aa226819a18e9ec3a69a82fc7b4a547f31ac16f", "2.3.0"}, /* linux x86_64 */
